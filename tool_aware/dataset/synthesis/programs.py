"""Runs the program of a code parameter before it is put into a row."""

from __future__ import annotations

from tool_aware.sandbox import DEFAULT_LIMITS, Limits, NotIsolated, run_program

UNISOLATED_OPTION = "--run-unisolated"
UNISOLATED = f"programs of paraphrases run without isolation, with your rights, files and network ({UNISOLATED_OPTION})"


def isolation_in_words(*, may_do_without: bool) -> str:
    """Return how programs will run, for the plan. Raises NotIsolated as `is_isolation_possible` does."""
    is_isolated = is_isolation_possible(may_do_without=may_do_without)
    return "run in a sandbox" if is_isolated else "run WITHOUT isolation, with your rights, files and network"


def is_isolation_possible(*, may_do_without: bool) -> bool:
    """Return whether this machine isolates programs. Raises NotIsolated if it does not, unless that may be."""
    try:
        run_program("print(1)")
    except NotIsolated as error:
        if not may_do_without:
            fix = f"{error.fix}; {UNISOLATED_OPTION} runs what the endpoint writes with your rights, files and network"
            raise NotIsolated(error.what, fix=fix) from error
        return False
    return True


def problem_of_program(code: str, limits: Limits = DEFAULT_LIMITS, *, is_isolated: bool = True) -> str | None:
    """Return why a program may not be used, in words; None for one that runs in the sandbox and prints something.

    Raises NotIsolated if this machine has no sandbox and `is_isolated` demands it.
    """
    run = run_program(code, limits, is_isolated=is_isolated)
    return run.problem or (None if run.printed.strip() else "prints nothing")
