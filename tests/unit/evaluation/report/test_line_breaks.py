"""Where long words may continue on the next line."""

import pytest

from tool_aware.evaluation.report.line_breaks import breakable, pieces, wrapped


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("rag_retrieval", ["rag_", "retrieval"]),
        ("web_search.query", ["web_", "search.", "query"]),
        ("getHTTPPage2Now", ["get", "HTTPPage2", "Now"]),
        ("100.0", ["100.0"]),
        ("1,000.5", ["1,000.5"]),
        ("[72–100]", ["[72–100]"]),
        ("+5.0", ["+5.0"]),
        ("tool_1", ["tool_", "1"]),
        ("__private__", ["__", "private__"]),
        ("x" * 30, ["x" * 16, "x" * 14]),
        ("", []),
    ],
)
def test_words_are_split_behind_separators_and_numbers_never(word, expected):
    assert pieces(word) == expected
    assert "".join(pieces(word)) == word


def test_lines_hold_whole_pieces_and_lose_none():
    assert wrapped("rag_retrieval_of_everything", 14) == ["rag_retrieval_", "of_everything"]
    assert wrapped("short", 14) == ["short"]
    assert wrapped("my own tool name", 8) == ["my own", "tool", "name"]
    assert wrapped("", 8) == [""]
    assert all(len(line) <= 9 for line in wrapped("x" * 64, 9))


def test_html_is_escaped_piece_by_piece():
    assert breakable("a_<b>  c&amp") == "a_&lt;b&gt;  c&amp;<wbr>amp"
    assert breakable("100.0 [72–100]") == "100.0 <span>[72–100]</span>"
    assert breakable("a_b -> c") == "a_<wbr>b <span>-&gt;</span> c"
    assert breakable("<script>_x") == "&lt;script&gt;_<wbr>x"
