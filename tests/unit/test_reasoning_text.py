"""What reasonings quote is found in the query as people type it, and a sentence is known by what is not a slot."""

import pytest

from tool_aware.reasoning_text import SAMPLE, SLOT, boilerplate, quoted, skeleton, stands_in


@pytest.mark.parametrize(
    ("reasoning", "quotes"),
    [
        ('"Our policy" points to "internal" material.', ["Our policy", "internal"]),
        ("The words 'our policy' don't leave a choice.", ["our policy"]),
        ("It doesn't matter what the user's asking for.", []),
        ("„unser Handbuch“ meint eigene Unterlagen.", ["unser Handbuch"]),
        ("« notre charte » est interne, “nuestro” también.", [" notre charte ", "nuestro"]),
        ("It says so.", []),
    ],
)
def test_evidence_is_what_stands_in_quotation_marks(reasoning, quotes):
    assert quoted(reasoning) == quotes


@pytest.mark.parametrize(
    ("quote", "query", "is_there"),
    [
        ("Our policy", "what does OUR   policy say?", True),
        ("hourly rate", "what is the hourly rae we bill", True),  # a letter missing
        ("working from home", "rules for wokring from home", True),  # two changed places
        ("a long question ... at the end", "a long question that goes on and is cut at the end", True),
        ("the second part ... the first", "the first part", False),
        ("our handbook", "what does our guide say", False),
        ("in 2024", "what happened in 2023", False),  # a number is no spelling
        ("...", "anything", False),
        ("", "anything", False),
    ],
)
def test_evidence_stands_in_the_query_as_it_was_typed(quote, query, is_there):
    assert stands_in(quote, query) is is_there


def test_a_sentence_is_the_same_whatever_fills_its_slots():
    one, other = 'The request about "pizza near me" needs Tripadvisor 2024.', 'The request about "rain" needs Google 3.'
    assert skeleton(one) == skeleton(other) == f"the request about {SLOT} needs {SLOT}"
    assert skeleton(one) != skeleton('The request about "rain" needs a look.')
    assert skeleton('"Rain" is outside.') == skeleton("'rain' is outside") == f"{SLOT} is outside"


def test_boilerplate_is_counted_among_as_many_reasonings_whatever_the_size_of_the_set():
    found = boilerplate(['"a" is public.', '"b" is public.', "Nobody else has written this."])
    assert (round(found.share, 3), found.sentences, found.reasonings) == (0.667, 2, 3)
    assert found.commonest[0] == (f"{SLOT} is public", 2)
    many = [f'{word} "a"' for word in ("so", "because", "since", "as") for _ in range(SAMPLE)]
    assert boilerplate(many).reasonings == SAMPLE
    assert boilerplate(many).sentences == 4
    assert boilerplate([]) is None
