"""Text as rows are compared, and what sequences of characters or token ids begin with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tool_aware.text import common_prefix_length, normalised


@pytest.mark.parametrize(
    ("sequences", "length"),
    [
        (["abc"], 3),
        (["abc", "abd", "ab"], 2),
        (["abc", ""], 0),
        ([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]], 2),
        ([[7], [8]], 0),
    ],
)
def test_the_common_beginning_of_texts_and_of_token_ids(sequences, length):
    assert common_prefix_length(sequences) == length


@given(st.lists(st.text("ab", max_size=6), min_size=1, max_size=6))
def test_all_sequences_begin_so_and_not_with_one_more(texts):
    length = common_prefix_length(texts)
    assert len({text[:length] for text in texts}) == 1
    assert len({text[: length + 1] for text in texts}) > 1 or length == min(map(len, texts))


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_normalised_as_it_is_beside_other_letters(text):
    assert normalised(f"{text} é") == f"{normalised(text)} é".strip()
