import pytest

from tool_aware.evaluation.scoring import key_terms
from tool_aware.evaluation.scoring.key_terms import index_tokens, terms_of
from tool_aware.evaluation.scoring.passages import TOP, Passages
from tool_aware.evaluation.scoring.word_comparison import Said, compare_words

TEXTS = [f"zorblax quixnor {number}" for number in range(3 * TOP)]  # words that no shipped passage has


def test_of_passages_with_equal_scores_those_that_stand_first_are_found():
    passages = Passages(TEXTS)
    first = passages.texts.index(TEXTS[0])
    assert list(passages.top("zorblax quixnor")) == list(range(first, first + TOP))


def test_passages_that_share_no_word_with_a_text_are_not_found():
    passages = Passages(TEXTS[:2])
    assert sorted(passages.top("zorblax")) == [passages.texts.index(text) for text in TEXTS[:2]]
    assert passages.top("vlimpter") == {}


@pytest.mark.parametrize(
    "text",
    [
        "Flights to Oslo on 2026-11-27, under 1,250.50 EUR, not via CDG",
        "wireless keyboard v2.5 3/4/2026 gluten-free a_b c3po",
        "FREELANCE rates? careless, 12.5.2026; sugarfree _x_",
    ],
)
def test_a_text_in_ascii_has_the_same_words_as_by_the_expression_for_all_texts(monkeypatch, text):
    found = terms_of.__wrapped__(text), index_tokens(text)
    monkeypatch.setattr(key_terms, "_ASCII_PIECES", key_terms._PIECES)
    assert (terms_of.__wrapped__(text), index_tokens(text)) == found


def test_a_text_is_free_of_something_as_the_expression_says():
    for text in ("fanless laptop", "gluten free", "Zucker-frei", "zuckerfreie Kekse", "lessons", "freedom", "FANLESS"):
        assert key_terms._is_free_of(text) == bool(key_terms._FREE_OF.search(text))


def test_a_lost_number_is_named_alike_in_every_process():
    """A set of readings has another order for every seed of Python's hashes."""
    numbers = [f"{number}.{number}0" for number in range(11, 20)]
    lost = compare_words("price", "price " + " ".join(numbers), (), Said(), Passages()).lost
    assert [word for word in lost if word[0].isdigit()] == [number[:-1] for number in numbers]
