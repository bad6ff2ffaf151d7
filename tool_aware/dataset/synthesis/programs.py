"""Runs the program of a code parameter before it is put into a row."""

from __future__ import annotations

from tool_aware.sandbox import DEFAULT_LIMITS, Limits, run_program


def problem_of_program(code: str, limits: Limits = DEFAULT_LIMITS, *, is_isolated: bool = True) -> str | None:
    """Return why a program may not be used, in words; None for one that runs in the sandbox and prints something.

    Raises NotIsolated if this machine has no sandbox and `is_isolated` demands it.
    """
    run = run_program(code, limits, is_isolated=is_isolated)
    return run.problem or (None if run.printed.strip() else "prints nothing")
