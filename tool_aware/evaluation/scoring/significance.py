"""Paired comparison of two systems on the same rows: McNemar's exact test and a bootstrap over groups of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tool_aware.evaluation.scoring.confusion import ConfusionCells, ConfusionCounts
from tool_aware.evaluation.scoring.intervals import Estimate, known, resamples_of
from tool_aware.evaluation.scoring.judgement import Judgement

if TYPE_CHECKING:
    from tool_aware.evaluation.scoring.confusion import Statistic

SIGNIFICANCE = 0.05
POWER = 0.8  # chance that the suggested number of rows shows a difference of the observed size

Conclusion = Literal["better", "worse", "not distinguishable at this size"]


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of two systems on one yes/no question.

    `only_first` rows were right for the first system alone, `only_second` for the second alone; rows on which both
    agree say nothing about the difference. `rows_to_settle` is None where no difference was seen.
    """

    only_first: int
    only_second: int
    rows: int
    p_value: float
    conclusion: Conclusion
    rows_to_settle: int | None

    @property
    def discordant(self) -> int:
        """Return the number of rows on which the systems differ."""
        return self.only_first + self.only_second


@dataclass(frozen=True)
class Comparison:
    """The second system against the first: differences (second - first) with bootstrap intervals over groups."""

    first: str
    second: str
    groups: int
    accuracy_difference: Estimate
    macro_f1_difference: Estimate
    tool_choice: PairedTest
    whole_call: PairedTest | None
    usable_call: PairedTest | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"verdict": self.verdict()}

    def verdict(self) -> str:
        """Write the conclusion and its evidence as a sentence."""
        test, difference = self.tool_choice, self.accuracy_difference
        evidence = (
            f"{100 * difference.value:+.1f} points of tool accuracy "
            f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}], {test.discordant} of {test.rows} rows "
            f"differ ({test.only_second} : {test.only_first} for {self.second}), exact McNemar p = {test.p_value:.2g}"
        )
        if test.conclusion in ("better", "worse"):
            return f"{self.second} is {test.conclusion} than {self.first}: {evidence}."
        if test.p_value < SIGNIFICANCE:
            more = f"but the rows come from {self.groups} groups only, and over those the interval includes 0"
            return f"{self.second} and {self.first} are {test.conclusion}: {evidence}; {more}."
        more = (
            f"about {test.rows_to_settle:,} rows would settle a difference of this size"
            if test.rows_to_settle
            else "no difference was seen"
        )
        return f"{self.second} and {self.first} are {test.conclusion}: {evidence}; {more}."


def _agreed(test: PairedTest, difference: Estimate) -> PairedTest:
    """Withdraw a conclusion that the bootstrap over groups does not confirm: McNemar treats rows as independent."""
    excludes_zero = difference.low > 0 or difference.high < 0
    return test if excludes_zero else replace(test, conclusion="not distinguishable at this size")


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """Test whether two systems are right equally often: exact binomial test on discordant rows (McNemar 1947)."""
    from scipy.stats import binomtest

    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    p_value = float(binomtest(only_second, discordant).pvalue) if discordant else 1.0
    conclusion: Conclusion = "not distinguishable at this size"
    if p_value < SIGNIFICANCE:
        conclusion = "better" if only_second > only_first else "worse"
    needed = rows_to_settle(only_first, only_second, len(first))
    return PairedTest(only_first, only_second, len(first), p_value, conclusion, needed)


def rows_to_settle(only_first: int, only_second: int, rows: int) -> int | None:
    """Estimate the rows at which a difference like the observed one shows with 80 % power at the 5 % level.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design":
    n = (z_a sqrt(d) + z_b sqrt(d - f^2))^2 / f^2, with d the discordant fraction and f the difference.
    """
    from scipy.stats import norm

    difference = (only_second - only_first) / rows
    if not difference:
        return None
    discordant = (only_first + only_second) / rows
    z_level, z_power = norm.ppf(1 - SIGNIFICANCE / 2), norm.ppf(POWER)
    root = z_level * math.sqrt(discordant) + z_power * math.sqrt(max(discordant - difference**2, 0.0))
    return math.ceil((root / difference) ** 2)


def compare(
    first: Sequence[Judgement], second: Sequence[Judgement], tools: Sequence[str], *, names: tuple[str, str], seed: int
) -> Comparison:
    """Compare two systems' judgements of the same rows, in the same order."""
    assert [j.row for j in first] == [j.row for j in second], "paired comparison needs the same rows"
    first_cells, second_cells = ConfusionCells.of(first, tools), ConfusionCells.of(second, tools)
    kinds = first_cells.kinds * (len(tools) + 1) + second_cells.credited
    resamples = resamples_of([judgement.group for judgement in first], kinds, seed=seed)

    before, after = first_cells.counts(resamples), second_cells.counts(resamples)

    def difference(statistic: Statistic) -> Estimate:
        return known(after.figure(statistic, less=before))

    accuracy_difference = difference(ConfusionCounts.accuracy)
    tool_choice = mcnemar([j.is_tool_right for j in first], [j.is_tool_right for j in second])
    return Comparison(
        *names,
        groups=len({judgement.group for judgement in first}),
        accuracy_difference=accuracy_difference,
        macro_f1_difference=difference(ConfusionCounts.macro_f1),
        tool_choice=_agreed(tool_choice, accuracy_difference),
        whole_call=_paired(first, second, lambda j: j.is_call_correct),
        usable_call=_paired(first, second, lambda j: j.is_call_usable),
    )


def _paired(
    first: Sequence[Judgement], second: Sequence[Judgement], question: Callable[[Judgement], bool | None]
) -> PairedTest | None:
    """Test two systems on a question about whole answers; None where one of them gives none."""
    answers = [[yes for j in judged if (yes := question(j)) is not None] for judged in (first, second)]
    return mcnemar(*answers) if all(len(group) == len(first) for group in answers) else None
