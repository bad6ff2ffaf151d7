import math
import random

import numpy as np
import pytest

from tool_aware.evaluation.scoring import intervals
from tool_aware.evaluation.scoring.intervals import bootstrap, group_numbers, proportion, resamples_of, share
from tool_aware.evaluation.scoring.judgement import Judgement
from tool_aware.evaluation.scoring.metrics import summarise
from tool_aware.evaluation.scoring.significance import compare, mcnemar, rows_to_settle

TOOLS = ["rag", "web", "chat"]


def judgements(pairs, groups=None):
    groups = groups or [f"g{index}" for index in range(len(pairs))]
    return [
        Judgement(row, right, None if chosen == "invalid" else chosen, chosen, groups[row])
        for row, (right, chosen) in enumerate(pairs)
    ]


def figures(pairs, **details):
    return summarise("s", judgements(pairs, **details), TOOLS, no_tool="chat", seed=0)


PAIRS = (
    [("rag", "rag")] * 6 + [("rag", "web")] * 2 + [("rag", "invalid")] * 2
    + [("web", "web")] * 5 + [("web", "chat")] * 5 + [("chat", "chat")] * 8 + [("chat", "rag")] * 2
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")  # that is what `invalid` is
def test_figures_equal_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support

    right, chosen = zip(*PAIRS, strict=True)
    m = figures(PAIRS)
    precision, recall, f1, support = precision_recall_fscore_support(right, chosen, labels=TOOLS, zero_division=0)
    for index, tool in enumerate(TOOLS):
        ours = m.per_tool[tool]
        assert ours.precision.value == pytest.approx(precision[index])
        assert ours.recall.value == pytest.approx(recall[index])
        assert ours.f1.value == pytest.approx(f1[index])
        assert ours.support == support[index]
    assert m.macro_f1.value == pytest.approx(f1_score(right, chosen, labels=TOOLS, average="macro"))
    assert m.weighted_f1.value == pytest.approx(f1_score(right, chosen, labels=TOOLS, average="weighted"))
    assert m.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(right, chosen))


def test_the_confusion_matrix_keeps_invalid_as_a_column_of_its_own():
    m = figures(PAIRS)
    assert m.labels == ["rag", "web", "chat", "invalid"]
    assert m.confusion == [[6, 2, 0, 2], [0, 5, 5, 0], [2, 0, 8, 0]]


def test_over_and_under_calling_are_told_apart_and_invalid_is_neither():
    m = figures([*PAIRS, ("chat", "invalid")])
    assert (m.over_call.value, m.over_call.n) == (2 / 11, 11)
    assert (m.under_call.value, m.under_call.n) == (5 / 20, 20)


def test_a_tool_without_rows_has_no_figures_and_does_not_count_in_averages():
    m = figures([("rag", "rag"), ("web", "chat")])
    assert m.per_tool["chat"].recall.value is None
    assert m.per_tool["chat"].f1.value is None
    assert m.per_tool["chat"].precision.value == 0  # it was chosen once, wrongly
    assert m.per_tool["web"].precision.value is None  # it was never chosen
    assert m.macro_f1.value == 0.5
    assert str(m.per_tool["chat"].f1) == "n/a"


def test_all_answers_invalid_is_zero_accuracy_and_no_precision():
    m = figures([(tool, "invalid") for tool in TOOLS for _ in range(3)])
    assert m.accuracy.value == 0
    assert m.macro_f1.value == 0
    assert all(tool.precision.value is None for tool in m.per_tool.values())
    assert m.under_call.value == 0


def test_wilson_intervals_have_the_published_half_widths():
    for n, half_width in ((20, 0.154), (100, 0.070), (200, 0.049), (500, 0.031)):
        estimate = proportion(round(0.85 * n), n)
        assert (estimate.high - estimate.low) / 2 == pytest.approx(half_width, abs=0.004)
    assert proportion(0, 0).value is None


def test_rows_of_one_group_are_drawn_together_and_widen_the_interval():
    resamples = resamples_of(["a", "a", "b", "c"], np.arange(4), seed=0)
    assert resamples.unit_of_row.tolist() == [0, 0, 1, 2]
    assert resamples.draws.shape == (2000, 3)
    pairs = [("rag", "rag"), ("rag", "web")] * 30
    alone = figures(pairs).accuracy
    together = figures(pairs, groups=[f"g{index % 6}" for index in range(60)]).accuracy
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_many_groups_that_count_alike_are_drawn_together_with_the_same_distribution(monkeypatch):
    random_ = random.Random(1)
    groups = [f"g{random_.randrange(900)}" for _ in range(1500)]
    right = [random_.random() < 0.7 for _ in groups]
    apart = share(right, groups, seed=3)
    kinds = np.array(right).astype(int) * 2 + 1
    monkeypatch.setattr(intervals, "MOST_DRAWN_APART", 10)
    together = share(right, groups, seed=3)
    assert (together.value, together.n) == (apart.value, apart.n)
    for one, other in ((together.low, apart.low), (together.high, apart.high)):
        assert one == pytest.approx(other, abs=0.1 * (apart.high - apart.low))
    resamples = resamples_of(groups, kinds, seed=3)
    assert resamples.once.sum() == len(set(groups))
    assert len(resamples.once) < 40
    counts = resamples.sums(kinds, 4)
    assert (resamples.once @ counts).tolist() == np.bincount(kinds, minlength=4).tolist()
    assert bootstrap(lambda drawn: drawn @ counts[:, 3], resamples).value == sum(right)


@pytest.mark.parametrize("most", [10, 1024])
def test_groups_by_number_give_the_intervals_that_their_names_give(monkeypatch, most):
    monkeypatch.setattr(intervals, "MOST_DRAWN_APART", most)
    names = np.array([f"g{index * 7 % 40}" for index in range(200)])
    right, part = np.arange(200) % 3 == 0, np.arange(200) % 40 > 7  # of some groups no row is left
    numbers = group_numbers(names.tolist())
    assert share(right[part], numbers[part], seed=1) == share(right[part].tolist(), names[part].tolist(), seed=1)


def test_a_perfect_score_still_has_an_interval():
    m = figures([("rag", "rag")] * 10 + [("web", "web")] * 10, groups=["a"] * 10 + ["b"] * 10)
    for figure in (m.accuracy, m.macro_f1, m.per_tool["rag"].f1, m.per_tool["rag"].precision):
        assert figure.value == figure.high == 1
        assert 0.6 < figure.low < 0.95
    assert m.per_tool["rag"].f1.low > m.per_tool["rag"].recall.low  # F1 is above J in the middle of the range


def test_intervals_are_the_same_for_the_same_seed():
    assert figures(PAIRS).macro_f1 == figures(PAIRS).macro_f1


# ---- base against tuned -----------------------------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial_test_on_discordant_rows():
    first = [False] * 6 + [True] * 4
    second = [True] * 6 + [True] * 4
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second, test.discordant) == (0, 6, 6)
    assert test.p_value == pytest.approx(2 * 0.5**6)
    assert test.conclusion == "better"
    assert mcnemar(second, first).conclusion == "worse"
    assert mcnemar(first[1:], second[1:]).conclusion == "not distinguishable at this size"  # 5:0 cannot reach 5 %
    assert mcnemar(first, first).p_value == 1


def test_the_number_of_rows_that_would_settle_it_does_settle_it():
    """Simulate at the suggested size: about 80 % of the tests must come out significant."""
    n = rows_to_settle(5, 10, 100)
    random = np.random.default_rng(0)
    outcomes = [random.multinomial(n, [0.05, 0.10, 0.85]) for _ in range(300)]
    significant = [mcnemar([True] * a + [False] * b, [False] * a + [True] * b).p_value < 0.05 for a, b, _ in outcomes]
    assert 0.70 < np.mean(significant) < 0.88
    assert rows_to_settle(5, 5, 100) is None


def test_the_interval_of_the_difference_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        first = random.random(150) < 0.5
        second = np.where(random.random(150) < 0.3, True, first)  # right 15 points more often
        pair = [judgements([("rag", "rag" if r else "web") for r in side]) for side in (first, second)]
        difference = compare(*pair, TOOLS, names=("a", "b"), seed=seed).accuracy_difference
        covered += difference.low <= 0.15 <= difference.high
    assert covered >= 52


def test_a_difference_that_hangs_on_few_groups_is_not_called_significant():
    groups = ["lucky"] * 20 + ["other"] * 20
    base = judgements([("rag", "web")] * 20 + [("web", "web")] * 20, groups)
    tuned = judgements([("rag", "rag")] * 20 + [("web", "web")] * 20, groups)
    comparison = compare(base, tuned, TOOLS, names=("base", "tuned"), seed=0)
    assert comparison.tool_choice.p_value < 1e-4
    assert comparison.tool_choice.conclusion == "not distinguishable at this size"
    assert "2 groups only" in comparison.verdict()


def test_the_verdict_is_a_sentence_with_its_evidence():
    base = judgements([("rag", "web")] * 30 + [("web", "web")] * 30)
    tuned = judgements([("rag", "rag")] * 25 + [("rag", "web")] * 5 + [("web", "web")] * 30)
    verdict = compare(base, tuned, TOOLS, names=("base", "tuned"), seed=0).verdict()
    assert verdict.startswith("tuned is better than base: +41.7 points of tool accuracy [")
    assert "25 of 60 rows differ (25 : 0 for tuned), exact McNemar p = 6e-08." in verdict
    same = compare(base, base, TOOLS, names=("base", "tuned"), seed=0).verdict()
    assert same.endswith("no difference was seen.")
    assert not math.isnan(compare(base, base, TOOLS, names=("a", "b"), seed=0).macro_f1_difference.value)
