import pytest

from tool_aware.config.data_sections import KeywordRouterSection
from tool_aware.evaluation import baselines_beside
from tool_aware.evaluation.baselines_beside import begin_baselines
from tool_aware.evaluation.scoring.baselines import baseline_predictions, note_of_sample, rows_compared
from tool_aware.evaluation.scoring.breakdown import break_down, top_confusions, worst_rows
from tool_aware.evaluation.scoring.judgement import Judgement, Prediction
from tool_aware.evaluation.scoring.robustness import ALL_OTHERS, ONE_FEWER, ONE_MORE, make_variants, on_lists
from tool_aware.prompt import parse_response, query_of, render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.tools import Tool, Toolbox, ToolCall

TOOLS = Toolbox([Tool("rag", "finds documents"), Tool("web", "searches the web"), Tool("chat", "talks")])


def row(query, tool, **metadata):
    return Row(
        render_instruction(query, TOOLS),
        render_response(ToolCall(tool, {}, "So.")),
        {"source": "test", "tool": tool, **metadata},
    )


ROWS = {
    0: row("find it", "rag", slice="plain"),
    1: row("news", "web", slice="plain"),
    2: row("hi " * 60, "chat", slice="long"),
    3: row("more news", "web", slice="typos"),
    4: row("other news", "web", slice="typos"),
}


def judged(chosen):
    return [
        Judgement(i, ROWS[i].tool, tool, tool, f"g{i}", error=None if tool == ROWS[i].tool else "wrong tool")
        for i, tool in enumerate(chosen)
    ]


def test_accuracy_is_broken_down_by_every_property_that_varies():
    parts = break_down({"tuned": judged(["rag", "rag", "chat", "rag", "rag"])}, ROWS)
    found = {(part.property, part.value): (part.rows, part.accuracy["tuned"].value) for part in parts}
    assert found[("slice", "plain")] == (2, 0.5)
    assert found[("slice", "typos")] == (2, 0.0)
    assert found[("length", "100 to 250 characters")] == (1, 1.0)
    assert not any(part.property in ("source", "language") for part in parts)  # one value, or none


def test_advice_names_the_commonest_confusion_and_where_it_happens():
    first, *_ = top_confusions(judged(["rag", "rag", "chat", "rag", "rag"]), ROWS)
    assert (first.right, first.chosen, first.rows, first.commonest_slice) == ("web", "rag", 3, "typos")
    assert first.examples == ["news", "more news", "other news"]
    assert first.advice().startswith("3 rows of web went to rag, most in slice typos: add contrast pairs")


def test_worst_rows_are_the_wrong_tools_chosen_with_most_confidence():
    worst = worst_rows(judged(["web", "rag", "chat", "web", "rag"]), {0: 0.4, 1: 0.9, 2: 1.0, 4: 0.7})
    assert [judgement.row for judgement in worst] == [1, 4, 0]


def test_variants_ask_the_same_questions_of_the_same_tools_in_other_words():
    same = {variant.name: variant for variant in make_variants(ROWS, TOOLS, seed=0) if variant.is_same}
    shuffled, masked = same["tools in another order"], same["tool names masked"]
    renamed, reworded = same["tools renamed"], same["another opening sentence"]
    assert len(same) == 4  # nobody has reworded these descriptions
    assert not set(renamed.real_names) & set(TOOLS.names)
    assert set(shuffled.tools.names) == set(TOOLS.names)
    assert shuffled.tools.names != TOOLS.names
    assert masked.real_names == {"tool_1": "rag", "tool_2": "web", "tool_3": "chat"}
    assert "rag" not in masked.rows[0].instruction
    assert "finds documents" in masked.rows[0].instruction
    for variant in (shuffled, masked, renamed, reworded):
        assert variant.rows.keys() == ROWS.keys()
        for index, varied in variant.rows.items():
            assert query_of(varied.instruction) == ROWS[index].query
            assert varied.instruction != ROWS[index].instruction


def test_variants_with_other_tools_ask_for_what_is_right_with_these():
    others = [variant for variant in make_variants(ROWS, TOOLS, seed=0, no_tool="chat") if not variant.is_same]
    assert [variant.list_name for variant in others] == [*[ONE_MORE] * 5, *[ONE_FEWER] * 2, *[ALL_OTHERS] * 2]
    for variant in others:
        for varied in variant.rows.values():
            assert varied.tool in variant.tools
            assert f"- {varied.tool}(" in varied.instruction
            assert variant.tools.problems(varied.answer.call) == [] or variant.list_name == ONE_FEWER
    without_rag = next(variant for variant in others if variant.name == f"{ONE_FEWER}: rag")
    assert "rag" not in without_rag.tools
    more = others[0]
    right = [Prediction(number, tool=row.tool) for number, row in more.rows.items()]
    wrong = [Prediction(number, tool="chat") for number in more.rows]
    found = on_lists([(ONE_MORE, more.rows, right)])
    assert {(each.asked, each.accuracy.value) for each in found} == {
        ("the test rows", 1.0),
        ("queries of the added tool", 1.0),
    }
    added = next(each for each in on_lists([(ONE_MORE, more.rows, wrong)]) if each.asked != "the test rows")
    assert (added.accuracy.value, added.accuracy.n) == (0.0, 1)  # no more queries of the library than test rows


def test_rows_whose_prompt_someone_else_wrote_have_no_variants():
    own = Row("Please choose a tool for: hello", ROWS[0].response, {"source": "custom", "tool": "rag"})
    assert make_variants({0: own}, TOOLS, seed=0) == []


TRAIN = [
    row(f"{verb} {thing}", tool)
    for verb, tool in (("find", "rag"), ("latest", "web"), ("explain", "chat"))
    for thing in ("report", "plan", "index", "budget", "story", "review")
]
ROUTER = KeywordRouterSection.model_validate(
    {"rules": [{"tool": "gone", "words": ["find"]}, {"tool": "web", "words": ["latest", "c++"]}], "otherwise": "rag"}
)


def test_baselines_choose_from_what_they_learned_and_only_tools_on_offer():
    test = {7: row("find budgets", "rag"), 9: row("LATEST numbers", "web"), 11: row("explain latestness", "chat")}
    baselines = baseline_predictions(TRAIN, test, ROUTER, TOOLS.names)
    chosen = {name: [p.tool for p in predictions] for name, predictions in baselines.items()}
    assert chosen["keyword router"] == ["rag", "web", "rag"]  # whole words, any case
    assert chosen["TF-IDF + logistic regression"] == ["rag", "web", "chat"]
    assert chosen["char n-gram k-NN"] == ["rag", "web", "chat"]
    assert chosen["majority"][0] in TOOLS.names
    assert [p.row for p in baselines["majority"]] == [7, 9, 11]


def test_neighbours_are_looked_for_among_all_training_rows_unless_that_are_too_many_pairs():
    assert rows_compared(14_244, 20_000) == 14_244
    assert note_of_sample(14_244, 20_000) == []
    assert rows_compared(28_028, 100_000) == 4_000
    assert "4,000 of the 28,028 training rows" in note_of_sample(28_028, 100_000)[0]


def test_baselines_that_cannot_learn_are_left_out():
    test = {0: row("find", "rag")}
    assert set(baseline_predictions([], test, ROUTER, TOOLS.names)) == {"keyword router"}
    assert set(baseline_predictions(TRAIN[:3], test, KeywordRouterSection(), TOOLS.names)) == {"majority"}
    assert parse_response(TRAIN[0].response).call is not None


def test_baselines_of_many_rows_come_from_another_process_and_are_the_same(monkeypatch):
    test = {7: row("find budgets", "rag"), 9: row("LATEST numbers", "web")}
    here = baseline_predictions(TRAIN, test, ROUTER, TOOLS.names)
    monkeypatch.setattr(baselines_beside, "MANY_ROWS", 2)
    monkeypatch.setattr(baselines_beside, "usable_cores", lambda: 2)
    monkeypatch.setattr(baselines_beside, "baseline_predictions", None)  # not called here
    assert begin_baselines(TRAIN, test, ROUTER, TOOLS.names)() == here


@pytest.mark.parametrize("is_idle", [True, False])
def test_baselines_of_fewer_rows_come_from_another_process_only_where_the_cores_are_idle(monkeypatch, is_idle):
    test = {7: row("find budgets", "rag")}
    begun = []
    monkeypatch.setattr(baselines_beside, "MANY_WHILE_IDLE", len(TRAIN) + 1)
    monkeypatch.setattr(baselines_beside, "usable_cores", lambda: 2)
    monkeypatch.setattr(baselines_beside, "Beside", lambda function, *arguments: begun.append(function))
    begin_baselines(TRAIN, test, ROUTER, TOOLS.names, is_idle=is_idle)
    assert begun == [baselines_beside.baseline_choices] * is_idle
