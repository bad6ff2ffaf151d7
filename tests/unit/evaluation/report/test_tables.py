from tests.fixtures.repository import REPOSITORY
from tool_aware.evaluation.report.tables import comparison_table, confusion_table, errors_table
from tool_aware.evaluation.scoring.judgement import Judgement
from tool_aware.evaluation.scoring.metrics import summarise
from tool_aware.evaluation.scoring.significance import compare

TOOLS = ["rag_retrieval", "web_search", "code_execution", "direct_chat"]


def judged(*chosen):
    """Twenty rows of each tool; every fifth goes where `chosen` says, the others where they belong."""
    rows = []
    for number in range(80):
        right = TOOLS[number % 4]
        credited = chosen[number % len(chosen)] if chosen and number % 5 < 2 else right
        error = None if credited == right else "wrong tool"
        rows.append(Judgement(number, right, credited, credited, f"g{number}", error=error))
    return rows


def test_the_printed_tables_are_those_of_the_brief(request):
    """Golden text: the comparison is the result, so a change of it must be seen and meant."""
    base, tuned = judged("rag_retrieval", "invalid", "web_search"), judged("rag_retrieval", *TOOLS, *TOOLS)
    metrics = [
        summarise(name, rows, TOOLS, no_tool="direct_chat", seed=0) for name, rows in (("b", base), ("t", tuned))
    ]
    comparison = compare(base, tuned, TOOLS, names=("base", "fine-tuned"), seed=0)
    tables = [
        comparison_table(*metrics, comparison),
        confusion_table(metrics[0]),
        errors_table({"base": metrics[0], "fine-tuned": metrics[1]}),
    ]
    golden = REPOSITORY / "tests/golden/evaluation/comparison.txt"
    assert "\n\n".join(tables) + "\n" == golden.read_text(encoding="utf-8")
