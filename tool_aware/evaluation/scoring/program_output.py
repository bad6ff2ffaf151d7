"""The output of programs, run in the sandbox: many at once, each text once, and compared as a reader compares them."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext
from queue import SimpleQueue

from tool_aware.sandbox import DEFAULT_LIMITS, Limits, ProgramRun, WarmInterpreter, run_program
from tool_aware.sandboxed import imported

LIMITS = replace(DEFAULT_LIMITS, time_s=2)  # of one program; what people ask an agent for takes milliseconds
RELATIVE = Decimal("1e-6")  # between numbers that are equal
SMALLEST = Decimal("1e-12")  # what is left of 0.1 + 0.2 - 0.3
# Of ten runs of a right simulation, normally distributed, 0.04 % have one outside the range of the reference's ten
# runs, widened by twice itself on either side. With five runs, widened once, it is 10 %.
RUNS_OF_VARYING = 10  # of a program whose output differs from run to run
WIDENED_BY = 2  # times the range of the reference's runs, on either side
FEWEST_DECIMALS = 2  # of a rounded number that stands for a longer one

_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TOKEN = re.compile(rf"(?P<number>(?<![\w.]){_NUMBER.pattern})|(?P<word>\w+)")
_OF_INTERPRETER = frozenset({"set", "frozenset", "hash", "id"})  # as they are in one interpreter and all its copies
_NUMPY, _PLAIN = "numpy", "plain"
_VARYING_MODULES = frozenset({"random", "secrets", "uuid", "time", "timeit", "numpy"})


@dataclass(frozen=True)
class Number:
    """A printed number and how many decimals it was printed with."""

    value: Decimal  # as programs print numbers that no float holds
    decimals: int


class ProgramRuns:
    """The programs that were run, by text. `run` takes any number of them and runs each new one once, several at once.

    Raises NotIsolated if this machine has no sandbox and `is_isolated` demands it.
    """

    def __init__(self, limits: Limits = LIMITS, *, is_isolated: bool = True, at_once: int | None = None) -> None:
        self._limits, self._is_isolated = limits, is_isolated
        self._at_once = at_once or 2 * (os.cpu_count() or 1)
        self._done: dict[str, list[ProgramRun]] = {}

    def run(self, programs: Iterable[str]) -> None:
        """Run the programs that are new; one whose output may differ from run to run, several times."""
        new = [program for program in dict.fromkeys(programs) if program not in self._done]
        due = [(program, kind) for program in new for kind in kinds_of_runs(program)]
        if not due:
            return
        at_once = min(self._at_once, len(due))
        with ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
            warm: dict[int | str, SimpleQueue[WarmInterpreter]] = {}
            for kind in {kind for _, kind in due}:
                warm[kind] = SimpleQueue()
                for _ in range(1 if isinstance(kind, int) else at_once):
                    interpreter = WarmInterpreter(self._limits, has_numpy=kind == _NUMPY)
                    warm[kind].put(stack.enter_context(interpreter))

            def run(program: str, kind: int | str) -> ProgramRun:
                if not self._is_isolated:
                    return run_program(program, self._limits, is_isolated=False)
                interpreter = warm[kind].get()
                try:
                    return interpreter.run(program)
                finally:
                    warm[kind].put(interpreter)

            for (program, _), done in zip(due, pool.map(run, *zip(*due, strict=True)), strict=True):
                self._done.setdefault(program, []).append(done)

    def of(self, program: str) -> list[ProgramRun]:
        """Return all runs of a program, and run it if it is new."""
        if program not in self._done:
            self.run([program])
        return self._done[program]

    def print_alike(self, one: str, other: str) -> bool:
        """Return whether both programs print the same, to the letter; one that fails or prints nothing equals none."""
        first, second = self.of(one)[0], self.of(other)[0]
        printed = first.printed.strip()
        return not first.problem and not second.problem and bool(printed) and printed == second.printed.strip()


def kinds_of_runs(program: str) -> list[int | str]:
    """Return, for each run of a program, which interpreters can do it: those of a kind, or one by its number.

    There are several runs where the output may differ from run to run: the program draws, reads a clock, or shows the
    order of a set, a hash or an address. These differ by interpreter, as each has its own seed of hashes.
    """
    try:
        tree = ast.parse(program.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [_PLAIN]
    modules = {name.partition(".")[0] for name in imported(tree)}
    if _calls(tree, _OF_INTERPRETER):
        return list(range(RUNS_OF_VARYING))
    kind = _NUMPY if _NUMPY in modules else _PLAIN
    may_vary = not modules.isdisjoint(_VARYING_MODULES) or _calls(tree, {"seed"})
    return [kind] * (RUNS_OF_VARYING if may_vary else 1)


def _calls(tree: ast.Module, names: Collection[str]) -> bool:
    """Return whether one of these functions is called, or a set written."""
    return any(
        isinstance(node, ast.Set | ast.SetComp)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names)
        for node in ast.walk(tree)
    )


def output_problem(answered: Sequence[ProgramRun], wanted: Sequence[ProgramRun]) -> str:
    """Return why a program does not give what the reference gives, in words; empty if it does.

    Each has one run, or several where its output may differ from run to run. A reference that fails or prints nothing
    is met by no program. Where the reference's own runs differ, those of the answer must lie among them.
    """
    own = answered[0]
    if own.problem:
        return own.problem
    if not own.printed.strip():
        return "prints nothing"
    texts = [run.printed for run in wanted if run.problem is None and run.printed.strip()]
    if not texts:
        return "the reference prints nothing to compare with"
    if any(same_print(own.printed, text) for text in texts):
        return ""
    if len(set(texts)) > 1:
        own_texts = [run.printed for run in answered if run.problem is None]
        return "" if _lie_among(own_texts, texts) else "prints what the reference never printed in several runs"
    return "prints something else"


def same_print(one: str, other: str) -> bool:
    """Return whether two outputs say the same.

    Numbers are compared in order, to a relative 1e-6 or as far as the one with fewer decimals goes (two at least), so
    that 1628.89 stands for 1628.8946. White space, punctuation and case do not count. The words count where there are
    no numbers, and beside numbers only as far as both print any: `Total: 3` says what `3` says.
    """
    ours, theirs = _tokens(one), _tokens(other)
    numbers, wanted = _numbers(ours), _numbers(theirs)
    words, wanted_words = _words(ours), _words(theirs)
    if len(numbers) != len(wanted) or not all(map(same_number, numbers, wanted)):
        return False
    if not wanted:
        return words == wanted_words
    return not words or not wanted_words or words == wanted_words


def same_number(one: Number, other: Number) -> bool:
    """Return whether two printed numbers are equal, or one is the other, rounded."""
    fewer = min(one.decimals, other.decimals)
    with localcontext(Context(traps=[])):  # an overflow is no error here, but infinite
        difference = abs(one.value - other.value)
        largest = max(abs(one.value), abs(other.value))
        is_rounded = fewer >= FEWEST_DECIMALS and difference <= Decimal(10) ** -fewer / 2 * (1 + RELATIVE)
        is_near = difference.is_finite() and difference <= max(RELATIVE * largest, SMALLEST)
        return one.value == other.value or is_rounded or is_near


def _lie_among(outputs: Sequence[str], texts: Sequence[str]) -> bool:
    """Return whether outputs are like several outputs of the reference, which differ from run to run.

    They have the same pieces in another order; or pieces of the same lengths, where all runs of the reference agree in
    these, as those of a random password do; or as many numbers, each within the range of those in its place, widened
    by twice as much on either side.
    """
    first = _tokens(outputs[0])
    if any(Counter(map(str, first)) == Counter(map(str, _tokens(text))) for text in texts):
        return True
    shapes = {tuple(map(len, text.split())) for text in texts}
    if len(shapes) == 1 and len(set(outputs)) > 1 and {tuple(map(len, text.split())) for text in outputs} == shapes:
        return True
    ours, theirs = ([_numbers(_tokens(text)) for text in group] for group in (outputs, texts))
    if len({*map(len, ours), *map(len, theirs)}) != 1 or not ours[0]:
        return False
    ranges = zip(*(map(_range, zip(*group, strict=True)) for group in (ours, theirs)), strict=True)
    with localcontext(Context(traps=[])):
        return all(
            low - WIDENED_BY * (high - low) <= least and most <= high + WIDENED_BY * (high - low)
            for (least, most), (low, high) in ranges
        )


def _range(numbers: Sequence[Number]) -> tuple[Decimal, Decimal]:
    values = [number.value for number in numbers]
    return min(values), max(values)


def _tokens(text: str) -> list[Number | str]:
    return [
        _number(match["number"]) if match["number"] else match["word"].casefold() for match in _TOKEN.finditer(text)
    ]


def _number(text: str) -> Number:
    plain = text.replace(",", "").replace("−", "-")
    mantissa = re.split("[eE]", plain)[0]
    with localcontext(Context(traps=[])):
        return Number(Decimal(plain), len(mantissa.partition(".")[2]))


def _numbers(tokens: Iterable[Number | str]) -> list[Number]:
    return [token for token in tokens if isinstance(token, Number)]


def _words(tokens: Iterable[Number | str]) -> list[str]:
    return [token for token in tokens if isinstance(token, str)]
