"""What people add behind the object of a request is a part of what is searched, whole; politeness is not."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import yaml

from tool_aware.config.settings import Config
from tool_aware.dataset.synthesis.content import CONTENT_DIR, SEARCH_TOOLS, Content, Frame, load_content
from tool_aware.dataset.synthesis.dialogues import load_follow_ups
from tool_aware.dataset.synthesis.fillers import Value
from tool_aware.dataset.synthesis.follow_ups import FollowUps
from tool_aware.dataset.synthesis.frames import Expansion
from tool_aware.dataset.synthesis.generator import Generator
from tool_aware.dataset.synthesis.invented_words import INVENTED
from tool_aware.dataset.synthesis.noise import Noise, Noisy
from tool_aware.dataset.synthesis.qualified_requests import qualified
from tool_aware.rows import Row

LANGUAGES = sorted(path.stem for path in (CONTENT_DIR / "qualifiers").glob("??.yaml"))
OBJECTS = {
    "en": "lorry roster", "de": "Fahrplan der Lastwagen", "fr": "plan des camions", "es": "cuadro de camiones",
    "it": "tabella dei camion", "pt": "mapa dos caminhões", "nl": "vrachtwagenschema", "pl": "plan ciężarówek",
    "sv": "lastbilsschema", "tr": "kamyon planı", "ru": "план грузовиков", "ja": "配車表", "zh": "卡车排班表",
}  # fmt: skip
FAMILIES = {"time", "place", "exclusion", "negation", "condition", "version", "source", "who", "format"}
WHERE_TO_LOOK = re.compile(
    r"\b(our|ours|we|us|internal|intranet|wiki|handbook|web|online|internet|google|today|latest|now|news|current|currently"
    r"|unser\w*|interne[mnrs]?|heute|aktuell\w*|notre|nuestr\w*|nostr\w*|noss[ao]s?|onze?|nasz\w*|vår\w*|bizim|наш\w*)\b"
    r"|社内|我们|最新|ネット|上网",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def content() -> Content:
    return load_content()


def request_of(content: Content, language: str, kind: str, tool: str, seed: int) -> tuple[str, Expansion]:
    """Return the object of a request and the request with qualifiers of one kind alone, politely put."""
    qualifiers = replace(content.qualifiers[language], classes={tool: {"x": [kind]}})
    object_ = OBJECTS[language]
    words = content.search_words.get(language)
    frame = Frame("f", "f", tool, "plain", language, "plain", "{long_x}")
    said = Expansion(object_, None, None)
    values = {"long_x": Value(object_, "")}
    stream = partial(random.Random, seed)
    return object_, qualified(frame, said, values, qualifiers, words=words, stream=stream)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_kind_of_qualifier_stays_in_the_search_text_and_politeness_does_not(
    content: Content, language: str
) -> None:
    polite = {text.strip(" ,，、。-") for text in content.qualifiers[language].politeness}
    met: Counter[str] = Counter()
    for tool in SEARCH_TOOLS:
        for kind in {kind for kinds in content.qualifiers[language].classes[tool].values() for kind in kinds}:
            for seed in range(25):
                object_, said = request_of(content, language, kind, tool, seed)
                assert said.search is not None
                assert said.text.startswith(said.search), said
                assert said.search.startswith(object_)
                behind = said.text[len(said.search) :].strip(" ,，、。-")
                assert behind in {"", *polite}, said
                met[kind] += len(said.search) > len(object_)
                met["polite"] += bool(behind)
    assert min(met.values()) > 5, met


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_kinds_of_a_language_are_many_and_name_no_place_to_look_in(content: Content, language: str) -> None:
    qualifiers = content.qualifiers[language]
    patterns = {kind: list(texts) for kind, texts in qualifiers.kinds.items()}
    families = {kind.partition("_")[0] for kind in patterns}
    needed = FAMILIES - {"who", "place", "format", "source"} if language in ("ja", "zh") else FAMILIES
    assert families >= needed
    for kind, texts in patterns.items():
        for text in texts:
            for seed in range(3):
                said = qualifiers.filled(text, random.Random(seed))
                assert not WHERE_TO_LOOK.search(re.sub(r"\S+\.\w+", "", said)), f"{kind}: {said}"


def test_a_qualifier_is_whole_whatever_it_is_made_of(content: Content) -> None:
    """Two of them too, with a request around the object that asks."""
    words = content.search_words["en"]
    qualifiers = content.qualifiers["en"]
    frame = Frame("f", "f", "rag_retrieval", "plain", "en", "plain", "where is *our {long_paper}*?")
    for seed in range(400):
        object_, stream = qualifiers.object("paper", random.Random(seed)), partial(random.Random, seed)
        said = Expansion(f"where is our {object_}?", f"our {object_}", None)
        made = qualified(frame, said, {"long_paper": Value(object_, "")}, qualifiers, words=words, stream=stream)
        assert made.search is not None
        assert made.search.startswith(object_)
        assert made.search in made.text
        assert made.text.split(made.search)[0] == "where is our "


def test_where_the_object_stands_within_a_clause_nothing_is_added(content: Content) -> None:
    frame = Frame("f", "f", "rag_retrieval", "plain", "en", "plain", "is {document} on it")
    said = Expansion("forklift list, is Priya on it", None, None)
    for seed in range(50):
        made = qualified(
            frame,
            said,
            {},
            content.qualifiers["en"],
            words=content.search_words["en"],
            stream=partial(random.Random, seed),
        )
        assert made == replace(said, search="forklift list, is Priya")


def test_a_search_text_is_a_part_of_the_query_typos_and_all(content: Content) -> None:
    clean = "where is our floor plan for Torvik, not the draft"
    text = "floor plan for Torvik, not the draft"
    assert Noisy("hey wehre is our flor plan for Torvik, not the drafft (thx)").span(text, clean) == (
        "flor plan for Torvik, not the drafft"
    )
    assert Noisy("WHERE IS OUR FLOOR PLAN FOR TORVIK, NOT THE DRAFT", letters="upper").span(text, clean) == text.upper()
    assert Noisy("my trian is late. is it the weather").span(
        "train weather", "my train is late. is it the weather"
    ) == ("trian weather")


def test_sentences_in_other_languages_lose_capitals_and_marks_and_get_typos(content: Content) -> None:
    noise = Noise(content.noise)
    said = "Wo finde ich bei uns die Wartungsvereinbarung Krelmar?"
    made = [noise.typed(said, random_=random.Random(seed), names="Krelmar").text for seed in range(300)]
    assert 0.2 < sum(text == text.lower() for text in made) / len(made) < 0.5
    assert 0.3 < sum(not text.endswith("?") for text in made) / len(made) < 0.6
    assert sum(text.lower().rstrip("?") != said.lower().rstrip("?") for text in made) > 10
    assert all("krelmar" in text.lower() for text in made)


@pytest.mark.parametrize("slot", ["name", "product", "person", "company", "code", "ticket", "file", "site", "date"])
def test_invented_words_hardly_ever_come_twice(slot: str) -> None:
    drawn = [INVENTED[slot](random.Random(seed), "en") for seed in range(1000)]
    assert len(set(drawn)) > 700
    assert all(text == text.strip() and text for text in drawn)


@pytest.fixture(scope="module")
def searches(content: Content, config: Config) -> list[Row]:
    generator = Generator(content, config.toolbox, seed=21)
    return [row for tool in SEARCH_TOOLS for row in generator.rows_for(tool, 1500)]


def test_searches_are_short_middling_and_long_and_end_in_other_words(searches: list[Row]) -> None:
    texts = [str(row.answer.parameters["query"]) for row in searches if row.metadata["language"] not in ("ja", "zh")]
    words = [len(text.split()) for text in texts]
    shares = [sum(low <= count <= high for count in words) / len(words) for low, high in ((1, 4), (5, 8), (9, 99))]
    assert all(0.25 < share < 0.45 for share in shares), shares
    ends = Counter(" ".join(text.lower().split()[-2:]) for text in texts)
    assert sum(count for _, count in ends.most_common(50)) / len(texts) < 0.14
    assert len(ends) / len(texts) > 0.6


def test_most_search_texts_stand_in_the_query_in_one_piece(searches: list[Row]) -> None:
    in_one_piece = [str(row.answer.parameters["query"]).lower() in row.query.lower() for row in searches]
    assert sum(in_one_piece) / len(in_one_piece) > 0.9


def test_qualifiers_of_a_turn_are_kept_in_the_search_of_its_follow_up(content: Content, config: Config) -> None:
    generator = Generator(content, config.toolbox, seed=22)
    made = FollowUps(load_follow_ups(), generator, config.toolbox, seed=22, limits=config.conversation).rows(900)
    rows = [row for row in made if row.tool in SEARCH_TOOLS and row.metadata["follow_up"] in ("ellipsis", "correction")]
    negated = [row for row in rows if row.metadata["language"] == "en" and ", not " in row.history[-1].query]
    assert len(negated) > 3
    for row in negated:
        asked = row.history[-1].query
        assert asked[asked.index(", not ") :].rstrip("?.! ") in str(row.answer.parameters["query"]), row.query


def test_what_is_wrong_with_qualifiers_is_named(content: Content) -> None:
    file = yaml.safe_load((CONTENT_DIR / "qualifiers/en.yaml").read_text("utf-8"))
    broken = replace(content.qualifiers["en"], kinds={**file["kinds"], "time_internal": ["from {yaer}"]}, classes={})
    problems = list(broken.problems())
    assert "'from {yaer}': unknown slot {yaer}" in problems
    assert any("of_slots: unknown class paper" in problem for problem in problems)
