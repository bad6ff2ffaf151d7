"""Rows that several processes make: the same, whatever the number of processes."""

from __future__ import annotations

import pytest

from tool_aware.console import UserError
from tool_aware.dataset import assembly
from tool_aware.dataset.assembly import assemble
from tool_aware.dataset.synthesis.content import load_content


@pytest.fixture(scope="module")
def small(config):
    counts = {"synthetic_per_tool": 60, "ambiguous": 8, "follow_ups": 12, "two_requests": 8}
    return config.model_copy(update={"dataset": config.dataset.model_copy(update=counts)})


@pytest.fixture
def on_cores(monkeypatch):
    """Let so many processes be worth it, however few rows there are."""

    def set_cores(cores: int) -> None:
        monkeypatch.setattr(assembly, "usable_cores", lambda: cores)
        monkeypatch.setattr(assembly, "_STARTING_ROWS", 1)

    return set_cores


@pytest.mark.parametrize("cores", [2, 16])
def test_more_processes_make_the_same_rows(small, on_cores, cores):
    on_cores(1)
    alone = assemble(small, load_content(), [])
    on_cores(cores)
    assert assemble(small, load_content(), []) == alone
    assert {row.tool for row in alone.rows} == set(small.toolbox.names)


def test_rows_are_divided_by_what_they_cost_and_a_few_are_not(small, on_cores):
    tools, kinds = dict.fromkeys(small.toolbox.names, 4000), {"follow-up": 2000, "ambiguous": 800}
    assert len(assembly._shares(dict.fromkeys(tools, 100), kinds | {"follow-up": 50})) == 1
    on_cores(4)
    shares = assembly._shares(tools, kinds)
    assert len(shares) == 4
    assert {tool: count for share, _ in shares for tool, count in share.items()} == tools
    assert [kinds for _, kinds in shares if kinds] == [{"follow-up": 2000}]
    assert max(len(share) for share, _ in shares) == 2  # the two that take no search text, in one process


def test_what_another_process_cannot_make_is_told_once_by_this_one(small, on_cores, capfd):
    on_cores(4)
    tool = small.tools[0].model_copy(update={"name": "book_room", "examples": []})
    broken = small.model_copy(update={"tools": [tool, *small.tools]})
    with pytest.raises(UserError, match="no other content to make its rows from"):
        assemble(broken, load_content(), [])
    assert "Traceback" not in capfd.readouterr().err
