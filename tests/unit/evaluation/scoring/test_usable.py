import hashlib
import json
import os
import random
import subprocess
import sys
from difflib import SequenceMatcher

import pytest

from tests.fixtures.labelled_calls import (
    labelled_calls,
    rule_verdicts,
    strict_verdict,
    texts_of,
    tools_of_labelled_calls,
)
from tests.fixtures.repository import REPOSITORY
from tool_aware.evaluation.scoring.key_terms import NEGATION, language_of, readings, same_word, terms_of
from tool_aware.evaluation.scoring.parameter_kinds import kind_of
from tool_aware.evaluation.scoring.passages import SHIPPED, TOP, Passages, shipped_passages
from tool_aware.evaluation.scoring.program_output import ProgramRuns
from tool_aware.evaluation.scoring.usable import ParameterJudge, reference_values
from tool_aware.evaluation.scoring.word_comparison import LOOKS_ALIKE, looks_like
from tool_aware.tools import Tool

TEXT = {"type": "string"}
PASSAGES_SHA256 = "a2920951e2d1797477878778aeefc1521884b2f991ae6c16874bd2d90b7024b2"


def tool(**properties):
    return Tool("t", "a tool", {"type": "object", "properties": properties})


@pytest.fixture(scope="module")
def judge():
    return ParameterJudge()


def use(judge, schema, wanted, given, asked=""):
    """The verdict on one parameter called `query`, or on several where the schema is a tool."""
    if isinstance(schema, Tool):
        return judge.judge_call(schema, given, reference_values(schema, wanted), asked)
    return use(judge, tool(query=schema), {"query": wanted}, {"query": given}, asked)


# ---- agreement with people ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_aside", "least"), [(False, 0.95), (True, 0.85)], ids=["made_with", "labelled_later"])
def test_the_rule_says_what_a_person_says(is_aside, least):
    """Of the calls that were set aside less is expected: nobody looked at them while the rule was made."""
    calls = labelled_calls()
    part = [call for call in calls if call.aside == is_aside]
    verdicts = rule_verdicts(part, ParameterJudge(texts=texts_of(calls), programs=ProgramRuns()))
    wrong = [(call.asked, call.answer, reason) for call, verdict, reason in verdicts if verdict != call.usable]
    assert len(part) >= 50
    assert len(wrong) <= (1 - least) * len(part), wrong
    tools = tools_of_labelled_calls()
    strictly = sum(strict_verdict(call, tools[call.tool]) == call.usable for call in part)
    assert strictly < 0.6 * len(part)  # what the strict policy alone would say of the same calls


def test_every_labelled_call_has_a_reason_and_half_are_answers_of_a_model():
    calls = labelled_calls()
    assert len(calls) >= 150
    assert all(call.why for call in calls)
    assert sum(call.origin != "written" for call in calls) >= len(calls) / 2
    assert len({json.dumps([call.earlier, call.asked, dict(call.answer)]) for call in calls}) == len(calls)


# ---- kinds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schema", "kind"),
    [
        ("query", TEXT, "search"),
        ("searchTerms", TEXT, "search"),
        ("query_id", TEXT, "exact"),
        ("query", {"enum": ["a", "b"]}, "exact"),
        ("query", {"type": ["string", "null"]}, "search"),
        ("query", {"anyOf": [{"type": "string", "pattern": "x"}, {"type": "null"}]}, "exact"),
        ("due", {"type": "string", "format": "date"}, "exact"),
        ("message", TEXT, "message"),
        ("email_body", TEXT, "message"),
        ("email", TEXT, "exact"),
        ("code", {"type": "string", "contentMediaType": "text/x-python"}, "code"),
        ("code", TEXT, "exact"),  # a country's, a voucher's: nothing says that it is a program
        ("python_code", TEXT, "code"),
        ("script", {"type": "string", "description": "A Python program"}, "code"),
        ("city", TEXT, "exact"),  # no rule names it: a wrong guess would pass wrong answers
        ("query", {"type": "integer"}, "exact"),
        ("query", True, "exact"),
    ],
)
def test_the_kind_follows_from_schema_and_name(name, schema, kind):
    assert kind_of(name, schema) == kind


def test_the_config_has_the_last_word_about_a_kind():
    plain, told = ParameterJudge(), ParameterJudge(judged_as={"t.place": "search"})
    for judge, is_usable in ((plain, False), (told, True)):
        call = use(judge, tool(place=TEXT), {"place": "noise policy Porto"}, {"place": "Porto noise policy"})
        assert call.is_usable == is_usable


# ---- search texts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "given", "reason"),
    [
        ("SLA Gold accounts", "SLA Silver accounts", "loses gold"),
        ("Tesla revenue 2024", "Tesla revenue", "loses 2024"),
        ("Tesla revenue 2024", "Tesla revenue 2024 2023", "invents 2023"),
        ("visitors 10,000 per day", "visitors 10000 per day", ""),
        ("report of 2024-03-05", "report of 5 March 2024", ""),
        ("report of 2024-03-05", "report of 6 March 2024", "loses 5"),
        ("recipes without nuts", "nut recipes", f"loses {NEGATION}"),
        ("restaurants gluten", "restaurants without gluten", f"invents {NEGATION}"),
        ("meetings last week", "meetings", "loses last, week"),
        ("meetings last week", "meetings next week", "loses last"),
        ("大阪の天気", "東京の天気", "loses 大阪"),
        ("报销标准", "报销的标准", ""),
        ("レストラン 京都", "京都のレストラン", ""),
        ("парковка для сотрудников", "парковка сотрудников", ""),
        ("noise policy", "", "loses noise, policy"),
    ],
)
def test_names_numbers_times_and_negations_must_survive(judge, wanted, given, reason):
    assert use(judge, TEXT, wanted, given).reason == (reason and f"query: {reason}")


def test_words_of_the_user_are_no_inventions(judge):
    assert not use(judge, TEXT, "parental leave", "parental leave Porto").is_usable
    assert use(judge, TEXT, "parental leave", "parental leave Porto", "parental leave in Porto?").is_usable


def test_added_words_are_harmless_while_the_same_is_found(judge):
    wanted = "VPN installation guide"
    assert use(judge, TEXT, wanted, "VPN installation guide document").is_usable
    flooded = f"{wanted} " + "cheese dinosaur violin harvest glacier mortgage tulip pension museum football " * 2
    assert "finds other passages" in use(judge, TEXT, wanted, flooded).reason


def test_a_subject_that_no_shipped_passage_has_is_judged_in_its_own_neighbourhood():
    """As in the data of a user: references and queries of the evaluated rows are passages."""
    parts = ["flange", "gasket", "spindle", "impeller", "bearing"]
    judge = ParameterJudge(texts=[f"zorbex {part} torque table" for part in parts])
    (verdict,) = use(judge, TEXT, "zorbex flange torque table", "torque table for the zorbex flange").parameters
    assert verdict.is_usable
    assert verdict.found == 1.0
    assert not use(judge, TEXT, "zorbex flange torque table", "zorbex gasket torque table").is_usable


def test_the_shipped_passages_are_fixed():
    """Figures of different versions can be compared only over the same passages."""
    assert SHIPPED.stat().st_size < 1_000_000
    text = "\n".join(shipped_passages())
    assert hashlib.sha256(text.encode()).hexdigest() == PASSAGES_SHA256
    assert len(shipped_passages()) == 8843
    assert len({language_of(passage) for passage in shipped_passages()}) >= 10


def test_a_search_finds_a_passage_by_its_words():
    passages = Passages(["zorbex flange torque table"])
    (first, *_) = passages.top("table of torques, zorbex flanges")
    assert passages.texts[first] == "zorbex flange torque table"
    assert len(passages.top("policy")) == TOP
    assert passages.top("") == passages.top("?!") == {}


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("contract", "contracts", True),
        ("dog", "dogs", True),
        ("biletu", "bilet", True),
        ("инструкция", "инструкции", True),
        ("car", "card", False),
        ("fee", "feed", False),
        ("marzo", "maggio", False),
        ("gold", "silver", False),
    ],
)
def test_one_word_in_two_forms(one, other, is_same):
    assert same_word(one, other) == same_word(other, one) == is_same


def test_a_number_is_read_in_every_way_it_can_be_meant():
    assert readings("1.250") == {"1250", "1.25"}
    assert readings("1,250.50") == readings("1.250,50") == {"1250.5"}
    assert readings("007") == {"7"}
    assert readings("1.2.3")


def test_function_words_are_those_of_the_texts_language():
    assert language_of("wie viele Urlaubstage stehen mir zu") == "de"
    assert terms_of("der Bericht über die Messe", "de").content == ("bericht", "messe")
    assert terms_of("war and peace", "en").content == ("war", "peace")  # war is a function word of German


# ---- messages, parts, omissions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "is_usable"),
    [
        ({"message": "please explain recursion to Tom, without code!"}, True),
        ({"message": "explain recursion to Tom"}, False),
        ({"message": "explain recursion to Tom without code or mathematics"}, False),
        ({"message": "explain recursion to Tom without code", "context": "for a talk"}, True),  # harmless
        ({"message": "explain recursion to Tom without code", "context": "for Anna"}, False),
        ({}, False),
    ],
)
def test_a_message_keeps_its_words_and_adds_none(judge, given, is_usable):
    schema = tool(message=TEXT, context={"type": ["string", "null"], "default": None})
    wanted = {"message": "explain recursion to Tom without code"}
    assert use(judge, schema, wanted, given).is_usable == is_usable


def test_arrays_and_objects_are_judged_by_their_parts(judge):
    schema = tool(
        keywords={"type": "array", "items": TEXT},
        filters={"type": "object", "properties": {"author": TEXT, "year": {"type": "integer"}}},
    )
    wanted = {"keywords": ["cold storage", "contract"], "filters": {"author": "Ingrid", "year": 2023}}
    given = {"keywords": ["cold storage", "contracts"], "filters": {"author": "ingrid", "year": 2023}}
    call = use(judge, schema, wanted, given)
    assert call.is_usable
    kinds = {verdict.name: verdict.kind for verdict in call.parameters}
    of_texts = dict.fromkeys(("keywords.0", "keywords.1"), "search")
    assert kinds == of_texts | dict.fromkeys(("filters.author", "filters.year"), "exact")
    for change in ({"keywords": ["cold storage"]}, {"filters": {"author": "Ingrid"}}, {"filters": {"year": 2023}}):
        assert not use(judge, schema, wanted, given | change).is_usable


def test_an_identical_call_is_usable_whatever_it_holds(judge):
    schema = tool(a={"anyOf": [{"type": "array"}, {"type": "null"}]}, query=TEXT, n={"type": "number"})
    for wanted in ({"a": None, "query": "", "n": 0}, {"a": [[], {}], "query": "?!", "n": 1.5}, {"query": "\n"}):
        assert use(judge, schema, wanted, wanted).is_usable


def test_a_parameter_that_nobody_asked_for_is_not_usable(judge):
    schema = tool(query=TEXT, limit={"type": "integer", "default": 3})
    assert use(judge, schema, {"query": "x ray"}, {"query": "x ray", "limit": 3}).is_usable
    assert use(judge, schema, {"query": "x ray"}, {"query": "x ray", "limit": 5}).reason == "limit: is not asked for"
    assert use(judge, schema, {"query": "x ray", "limit": 5}, {"query": "x ray"}).reason == "limit: is missing"


def test_where_no_program_is_run_only_the_same_program_is_usable(judge):
    schema = tool(code={"type": "string", "contentMediaType": "text/x-python"})
    assert use(judge, schema, {"code": "x = 1\nprint(x)"}, {"code": "y = 1\nprint(y)"}).is_usable
    assert "programs were not run" in use(judge, schema, {"code": "print(1)"}, {"code": "print(2 - 1)"}).reason


@pytest.mark.parametrize(
    "value",
    ["\ud83d", "\x00", "", "?!", "\u202e", "a" * 300_000, "1" * 50_000, "1." * 20_000, "(" * 5_000, "東京" * 50_000,
     " ".join(f"w{i:x}rd" for i in range(20_000)), " ".join(map(str, range(20_000)))],
    ids=lambda value: f"{value[:6]!a} {len(value)}",
)  # fmt: skip
def test_any_text_is_judged_in_little_time(judge, value):
    schema = tool(query=TEXT, message=TEXT, code={"type": "string", "contentMediaType": "text/x-python"})
    wanted = {"query": "SLA Gold accounts", "message": "explain recursion", "code": "print(1)"}
    assert not use(judge, schema, wanted, dict.fromkeys(wanted, value), asked="explain SLA Gold accounts").is_usable
    assert not use(judge, schema, dict.fromkeys(wanted, value), wanted, asked=value).is_usable


def test_searching_loads_no_jax_where_it_is_installed(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise SystemExit('jax was loaded, which takes most of a GPU')")
    code = "from tool_aware.evaluation.scoring.passages import Passages; print(len(Passages().top('travel policy')))"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "10\n"), result.stderr


def test_words_look_alike_exactly_where_difflib_says_so():
    random_ = random.Random(3)
    words = ["".join(random_.choices("aeiostr", k=random_.randint(3, 9))) for _ in range(120)]
    found = {(one, other) for one in words for other in words if looks_like(one, other)}
    ratio = lambda one, other: SequenceMatcher(None, one, other).ratio()  # noqa: E731
    assert found == {(one, other) for one in words for other in words if ratio(one, other) >= LOOKS_ALIKE}
    assert 120 < len(found) < 2_000
