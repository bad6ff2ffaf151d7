"""Search texts follow from the query by one rule: what it is about, as it was typed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tool_aware.config.settings import Config
from tool_aware.dataset.synthesis.content import SEARCH_TOOLS, Content, load_content
from tool_aware.dataset.synthesis.dialogues import load_follow_ups
from tool_aware.dataset.synthesis.follow_ups import FollowUps
from tool_aware.dataset.synthesis.generator import Generator
from tool_aware.dataset.synthesis.noise import Noisy
from tool_aware.dataset.synthesis.search_text import continued_search_text, search_text
from tool_aware.rows import Row


@pytest.fixture(scope="module")
def content() -> Content:
    return load_content()


@pytest.mark.parametrize(
    ("language", "asked", "searched"),
    [
        ("en", "What have we promised Nordwind about deliveries?", "promised Nordwind about deliveries"),
        ("en", "is it going to snow this week", "snow this week"),
        ("en", "flights from New York to Oslo without a stop", "flights from New York to Oslo without a stop"),
        ("en", "who signed off the change request 311?", "who signed off the change request 311"),
        ("en", 'find the mail "to whom it may concern"', 'mail "to whom it may concern"'),
        ("en", "hotels in Turin with parking, not in the centre", "hotels in Turin with parking, not in the centre"),
        ("en", "show me the mails that do not mention the lift", "mails that do not mention the lift"),
        ("en", "the opening hours of the Bank of America in Leeds", "opening hours of the Bank of America in Leeds"),
        ("en", "which rooms did the auditors get?", "which rooms did the auditors get"),
        ("en", "hi, what discount does Zara give us", "what discount does Zara give us"),
        ("en", "which team has won most titles by now?", "which team has won most titles"),
        ("en", "how common is a fuel cell? many thanks", "how common is a fuel cell"),
        ("en", "who in sales has not signed the handover sheet", "who in sales has not signed the handover sheet"),
        ("en", "what can you tell me about pumps that are certified", "pumps that are certified"),
        ("en", "who runs the depot in Gdansk?", "who runs the depot in Gdansk"),
        ("en", "who is the head of the depot in Gdansk?", "head of the depot in Gdansk"),
        ("en", "who was nominated for the prize", "who was nominated for the prize"),
        ("en", "did we ever write a guideline on lost keys?", "guideline on lost keys"),
        ("en", "who knows about the lease of the depot", "lease of the depot"),
        ("en", "how many drivers do we have?", "how many drivers"),
        ("en", "how old is the lift and is it safe", "how old is the lift and is it safe"),
        ("en", "the lease of the depot, until when?", "lease of the depot, until when"),
        ("en", "why did we drop Nordwind", "why did we drop Nordwind"),
        ("en", "compare the old leave form with the new one", "compare the old leave form with the new one"),
        ("en", "what does 'cold chain' cover in our contracts", "'cold chain' cover in our contracts"),
        ("en", "our rule allows 9 days: does that hold for Leeds?", "rule allows 9 days: does that hold for Leeds"),
        ("en", "the letter of Dr. E. Moreau about the roof", "letter of Dr. E. Moreau about the roof"),
        ("de", "wann läuft unser Vertrag mit Nordwind aus?", "wann läuft unser Vertrag mit Nordwind aus"),
        ("de", "ich bin neu, wo liegt der Lageplan vom 20. Mai", "Lageplan vom 20. Mai"),
        ("fr", "quel modèle l'équipe utilise-t-elle ?", "quel modèle l'équipe utilise-t-elle"),
        ("es", "¿por qué dejamos a ese proveedor?", "por qué dejamos a ese proveedor"),
        ("it", "a che ora parte il treno per Lugano", "a che ora parte il treno per Lugano"),
        ("pl", "kto wygrał wczoraj mecz", "kto wygrał wczoraj mecz"),
        ("tr", "internette altın fiyatı ara", "altın fiyatı"),
        ("nl", "wanneer loopt ons contract met Nordwind af?", "wanneer loopt ons contract met Nordwind af"),
        ("nl", "hoeveel inwoners heeft Breda nu?", "hoeveel inwoners heeft Breda"),
        ("es", "¿Cuántos habitantes tiene Monterrey?", "Cuántos habitantes tiene Monterrey"),
        ("de", "Was steht in unserer Spesenordnung zu Reklamationen?", "Spesenordnung zu Reklamationen"),
        ("de", "was kostet die Bahncard 50 ohne Bindung", "was kostet die Bahncard 50 ohne Bindung"),
        ("fr", "Quel est le délai de paiement du contrat avec le fournisseur Delmas ?",
         "délai de paiement du contrat avec le fournisseur Delmas"),
        ("fr", "Qu'est-ce qu'on a décidé sur l'entrepôt ?", "décidé sur l'entrepôt"),
        ("es", "¿Qué tiempo hará mañana en Buenos Aires?", "Qué tiempo hará mañana en Buenos Aires"),
        ("it", "cosa dice il contratto con Rossi sui tempi?", "contratto con Rossi sui tempi"),
        ("nl", "wat staat er in het contract met Jansen over levertijden?", "contract met Jansen over levertijden"),
        ("pl", "jaka jest pogoda w ten weekend, Gdańsk?", "pogoda w ten weekend, Gdańsk"),
        ("sv", "Hur blir vädret i morgon i Göteborg?", "vädret i morgon i Göteborg"),
        ("tr", "Ankara'da bu hafta sonu hava nasıl?", "Ankara bu hafta sonu hava"),
        ("ru", "Какая погода завтра в Москве?", "Какая погода завтра в Москве"),
    ],
)  # fmt: skip
def test_a_search_text_is_what_the_request_is_about_as_it_was_typed(
    content: Content, language: str, asked: str, searched: str
) -> None:
    assert search_text(asked, content.search_words[language]) == searched


def test_words_of_another_search_are_taken_as_the_request_has_them(content: Content) -> None:
    words = content.search_words["en"]
    asked = "I keep hearing about some recall of baby food, is that a thing?"
    assert search_text(asked, words, about="recall baby food") == "recall of baby food"
    assert search_text(asked, words, about="baby food recall") == "baby food recall"  # in another order
    assert search_text("my train is late. is it the weather", words, about="train weather") == "train weather"
    asked = "don't stay here, the total is in the log of May, is it right"
    assert search_text(asked, words, about="total log of May") == "total is in the log of May"  # a span if it can be
    assert search_text("I ask: who won the cup", words, about="won the cup") == "who won the cup"
    asked = "we move to Oslo. which rooms did r&d get"
    assert search_text(asked, words, about="Oslo rooms r&d") == "Oslo rooms r&d"  # half a question says nothing


def test_words_of_a_search_in_a_language_without_spaces_are_one_span_of_a_sentence() -> None:
    assert search_text("東京から京都までの料金はいくら？", None, about="東京 京都 料金") == "東京から京都までの料金"
    assert search_text("客户签字了吗？补充协议", None, about="客户 补充协议") == "客户 补充协议"
    assert search_text("神戸は雨降る？", None, about="天気 神戸") == "天気 神戸"


def test_a_filler_stays_whole(content: Content) -> None:
    words = content.search_words["en"]
    assert search_text("our rule on search outages", words) == "rule on search outages"
    assert search_text("show me our check list of the use of tools", words, ["check list of the use of tools"]) == (
        "check list of the use of tools"
    )


def test_what_leaves_nothing_over_is_searched_as_it_stands(content: Content) -> None:
    assert search_text("who is it?", content.search_words["en"]) == "who is it"


def test_a_follow_up_is_completed_by_words_of_the_turn_before_and_adds_its_own(content: Content) -> None:
    words = content.search_words["en"]
    asked = "find the offer we sent to Kessler in August"
    text = continued_search_text(asked, "which discount is in it?", "discount in the offer to Kessler in August", words,
                                 ["Kessler", "August"])  # fmt: skip
    assert text == "offer Kessler August discount"


def rows_of(content: Content, config: Config) -> Iterator[Row]:
    generator = Generator(content, config.toolbox, seed=11)
    for tool in SEARCH_TOOLS:
        yield from generator.rows_for(tool, 1200)
    follow_ups = FollowUps(
        load_follow_ups(), generator, config.toolbox, seed=11, limits=config.conversation
    ).rows(400)  # fmt: skip
    yield from (row for row in follow_ups if row.tool in SEARCH_TOOLS)


def test_every_word_of_a_search_text_was_typed_but_for_corrected_typos(content: Content, config: Config) -> None:
    """A model can only learn what follows from the query and the turns before it."""
    typed = searched = 0
    for row in rows_of(content, config):
        words = re.findall(r"[^\W_]+", str(row.answer.parameters["query"]).lower())
        text = " ".join([row.query, *(turn.query for turn in row.history)]).lower()
        if row.metadata["language"] in ("ja", "zh"):
            words, text = str(row.answer.parameters["query"]).lower().split(), text.replace(" ", "")
            found = sum(word in text for word in words)
        else:
            found = sum(word in set(re.findall(r"[^\W_]+", text)) for word in words)
        typed, searched = typed + found, searched + len(words)
    assert typed / searched > 0.965


def test_names_keep_their_letters_and_have_no_typos(content: Content, config: Config) -> None:
    """Nobody can correct a mistyped name, so none is; a query in small letters is searched in small letters."""
    rows = Generator(content, config.toolbox, seed=12).rows_for("web_search", 1500)
    for row in rows:
        text = str(row.answer.parameters["query"])
        if row.query.lower() == row.query:
            assert text == text.lower(), row.query
        for name in re.findall(r"\b[A-Z][a-z]{4,}\b", text):
            assert name in row.query or re.search(rf"\b{name}", row.query, re.IGNORECASE), (row.query, text)


def test_a_part_of_a_request_is_quoted_as_it_was_typed() -> None:
    noisy = Noisy("hey, wehre is our price lsit for resellers thanks", letters="lower")
    assert noisy.quoted("our price list") == "our price lsit"
    assert noisy.as_typed("Where is our price list for resellers?") == "where is our price list for resellers?"
    assert Noisy("so, What is jet lag").as_typed("what is jet lag?") == "What is jet lag"
    assert Noisy("qui était Colette").as_typed("qui était Colette ?") == "qui était Colette"
