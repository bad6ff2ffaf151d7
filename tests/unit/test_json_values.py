"""What a JSON value may not hold."""

from __future__ import annotations

from tool_aware.json_values import MAX_NESTING, lone_surrogate, unusable


def test_half_a_surrogate_pair_is_found_wherever_it_is():
    assert lone_surrogate({"a": ["fine 😀", {"b": "bad \ud83d"}]}) == "a[1].b"
    assert lone_surrogate("\ude00") == "the text"
    assert lone_surrogate({"a": {"\ud83d": 1}}) == "a key of a"
    assert lone_surrogate({"a": [1, None, 2.5, True, "é"]}) is None


def test_texts_numbers_and_nesting_that_are_unusable_are_named_with_their_place():
    assert unusable({"a": ["fine 😀", {"b": [1, None, True, "é"]}]}) is None
    assert unusable({"a": ["fine", "bad \ud83d"]}, "row").startswith("row.a[1]: half a surrogate pair")
    assert unusable({"a": [1.5, float("nan")]}) == "a[1]: nan is no JSON value; write null"
    deep: list = []
    for _ in range(MAX_NESTING + 1):
        deep = [deep]
    assert "nested deeper" in str(unusable(deep))
    assert unusable(deep[0]) is None
