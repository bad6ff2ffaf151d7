"""config.yaml as people write it: YAML 1.2's scalars, and one message for whatever cannot be meant."""

from __future__ import annotations

import math
import random
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.fixtures.repository import CASES, REPOSITORY
from tool_aware.config import yaml_file
from tool_aware.config.problems import section_of
from tool_aware.config.settings import Config, load_config
from tool_aware.config.yaml_file import read_yaml_file
from tool_aware.console import UserError

YAML_CASES = CASES / "config_yaml"


def value_of(folder: Path, text: str) -> object:
    """Read `text` as the value of a key; raises UserError."""
    path = folder / "value.yaml"
    path.write_text(f"key: {text}\n", encoding="utf-8")
    return read_yaml_file(path)["key"]


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value)


SCALARS = {  # https://yaml.org/spec/1.2.2/#103-core-schema
    **{text: text for text in ("on", "off", "yes", "no", "y", "n", "On", "NO", "10:30", "1:2:3", "2026-01-31", "=")},
    **{text: text for text in ("1_000", "0.000_2", "0b11", "tRUE", "nULL", "1e", "0x", "0o8", "-0x1F")},
    "2026-01-31T10:00:00Z": "2026-01-31T10:00:00Z",
    **dict.fromkeys(("~", "null", "Null", "NULL", "")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{"0": 0, "010": 10, "-7": -7, "+7": 7, "0o17": 15, "0x1F": 31},
    **{"1e-4": 1e-4, "2E-4": 2e-4, "1.": 1.0, ".5": 0.5, "-1.5e+3": -1500.0, ".inf": math.inf, "-.INF": -math.inf},
    **{'"1"': "1", "'on'": "on", '"<<"': "<<", "!!str 12": "12", "!!int 0x10": 16, "!!float 3": 3.0},
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), SCALARS.items(), ids=map(repr, SCALARS))
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, expected):
    found = value_of(tmp_path, text)
    assert (found, type(found)) == (expected, type(expected))


MIXED = """\
a: &x {b: 1, c: [1, "x:y", 'it''s']}
d:
  <<: *x
  f: |
    text
     more
  g: >-
    folded
    text
"h": "\\u00e9 \\x41"
? k
: [a, b: c, {url: http://x:80/y#z}]  # comment
"""
PIECES = (
    *("\t", "\ufeff", "\x85", "\u2028", "\xa0", "\0", "\r", "\n", "? ", "!", "!!str ", "%", "#", ":", ": ", "- ", ","),
    *("{", "}", "[", "]", "'", '"', "\\", "&a ", "*x", ">", "---\n", "...\n", "é", "😀", "<<: "),
)


def test_the_quick_parser_reads_what_the_thorough_one_does():
    """Texts with three pieces where they do not belong: half of them can still be read."""
    draw, read = random.Random(0), 0
    for _ in range(400):
        text = MIXED
        for piece in draw.choices(PIECES, k=draw.choice((1, 1, 3))):
            at = draw.randrange(len(text))
            text = text[:at] + piece + text[at:]
        try:
            expected = yaml.load(text, Loader=yaml_file._Loader)
        except yaml.YAMLError:
            with pytest.raises(yaml.YAMLError):
                yaml_file._values_of(text)
        else:
            assert yaml_file._values_of(text) == expected
            read += 1
    assert read > 100


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text("abcnoy10:", min_size=1, max_size=5), inner, max_size=3)
        ),
    )
)
def test_what_is_written_with_quoted_texts_is_read_back(tmp_path_factory, value):
    class Quoting(yaml.SafeDumper):
        pass

    Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_text(yaml.dump({"value": value}, Dumper=Quoting, allow_unicode=True), encoding="utf-8")
    assert read_yaml_file(path)["value"] == value


@given(st.text("0123456789.+-eExXoOabf_:~nulltrINFa<=", max_size=8))
def test_a_plain_scalar_is_of_the_type_that_the_specification_says(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("yaml")
    try:
        found = value_of(folder, text)
    except UserError:  # not a plain scalar: `a: b`, `- a`
        return
    if isinstance(found, dict | list):
        return
    core = text.strip()
    if re.fullmatch(r"[-+]?[0-9]+", core):
        assert found == int(core)
    elif re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", core):
        assert found == float(core)
    elif core in ("", "~", "null"):
        assert found is None
    elif re.fullmatch(r"0x[0-9a-fA-F]+|0o[0-7]+", core):
        assert found == int(core, 0)
    elif not re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)|true|True|TRUE", core):
        assert isinstance(found, str)


def test_merge_keys_give_what_the_mapping_does_not_say_itself(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\n"
        "single: {<<: *one, b: 9}\nseveral: {<<: [*one, *two], d: 4}\nnested: {<<: {<<: *one, x: 1}}\n"
    )
    values = read_yaml_file(path)
    assert values["single"] == {"a": 1, "b": 9}
    assert values["several"] == {"a": 1, "b": 1, "c": 2, "d": 4}
    assert values["nested"] == {"a": 1, "b": 1, "x": 1}


def test_an_override_of_what_an_alias_names_changes_one_place_only():
    path = YAML_CASES / "alias.yaml"
    config = load_case(path, "tools.0.parameters.properties.request.type=integer")
    assert config.tools[0].parameters["properties"] == {"request": {"type": "integer"}}
    assert config.tools[1].parameters["properties"] == {"request": {"type": "string"}}


def load_case(path: Path, *overrides: str, base: Path = REPOSITORY / "config.yaml") -> Config:
    """Load a case whose `extends: config.yaml` is the one in the repository."""
    return load_config(beside(path, base), overrides)


def beside(path: Path, base: Path = REPOSITORY / "config.yaml") -> Path:
    folder = Path(tempfile.mkdtemp())
    shutil.copy(base, folder / "config.yaml")
    return Path(shutil.copy(path, folder / path.name))


def test_modes_times_and_dates_in_a_schema_are_the_texts_that_were_written():
    thermostat = load_case(YAML_CASES / "norway.yaml").tools[0].parameters
    assert thermostat["properties"]["mode"]["enum"] == ["on", "off", "auto"]
    shipping = load_case(YAML_CASES / "country.yaml").tools[0].parameters["properties"]
    assert shipping["country"]["enum"] == ["SE", "NO", "DK"]
    assert (shipping["at"]["default"], shipping["from_day"]["default"]) == ("10:30", "2026-01-31")
    example = load_case(YAML_CASES / "norway_example.yaml").tools[0].examples[0]
    assert example.parameters == {"mode": "on"}


def test_merge_keys_in_a_schema_are_followed():
    reminders = load_case(YAML_CASES / "merge.yaml").tools[1].parameters
    assert reminders["required"] == ["request"]
    assert reminders["additionalProperties"] is False


@pytest.mark.parametrize("name", ["bom", "utf16"])
def test_a_byte_order_mark_is_read_as_what_it_says(name):
    assert load_case(YAML_CASES / f"{name}.yaml").lora.r == 16


REFUSED_CASES = {
    "comment": "comment.yaml:3: expected ','",
    "envvar": "model.name: variables are not filled in here",
    "extends_dir": "names it with extends, which takes a file",
    "extends_list": "extends must name one file, not ['config.yaml', 'other.yaml']",
    "inf": "training.max_grad_norm: input should be a finite number",
    "nan": "training.learning_rate: input should be a finite number",
    "jinja": "jinja.yaml:3: a key must be a text",
    "nullsection": "leave the key out, or write what belongs below it",
    "octal": "training.learning_rate: input should be a valid number (got '0.000_2'); write 0.0002",
    "strint": "lora.r: input should be a valid integer (got '16'); write 16, without quotes",
    "tab": "tab.yaml:3: found character '\\t'",
    "twodocs": "twodocs.yaml:3: has a second document",
}


@pytest.mark.parametrize(("name", "expected"), REFUSED_CASES.items(), ids=REFUSED_CASES)
def test_what_cannot_be_meant_is_refused_with_its_place(name, expected):
    assert expected in refusal(beside(YAML_CASES / f"{name}.yaml"))


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    BOMB: "too many values, most of them through aliases",
    "a: " + "[" * 3000: "is nested too deeply",
    "a: " + "[" * 150 + "]" * 150: "is nested too deeply",
    "a: &a [*a]": "recursive",
    "a: &a {<<: *a}": "recursive",
    "a: *b": "undefined alias 'b'",
    "a: {<<: 3}": "<< merges mappings only",
    "a: 1\n1: x": 'file.yaml:2: key 1 is no text; write "1"',
    "true: x": 'write "true"',
    "? [a]\n: x": "a key must be a text",
    "a: {{ x }}": "fill in what a template left open",
    "a: {% if x %}": "fill in what a template left open",
    "a: !!set {b}": "the tag !!set is not supported",
    "a: !!python/object/apply:os.system [ls]": "is not supported",
    "a: !!binary aGk=": "the tag !!binary is not supported",
    "a: !!int x": "is no int",
    "a: !!map [1]": "is no mapping",
    f"a: {'9' * 5000}": "is a number of too many digits",
    "a: 1\na: 2": "file.yaml:2: duplicate key 'a'",
    "a: 1\n---\nb: 1": "has a second document",
    "a: 'x": "file.yaml:",
    "extends:": "extends must name one file, not None",
    "extends: nowhere.yaml": "file.yaml names it with extends",
    "- a": "must be a mapping",
    "just text": "must be a mapping",
    "\x00": "is not YAML",
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.items(), ids=[text[:20] for text in BROKEN])
def test_broken_yaml_is_one_message(tmp_path, text, expected):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml_file(path)
    assert expected in str(caught.value)


def test_a_file_in_another_encoding_says_which_it_may_be(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes("dataset: {dir: Größe}".encode("cp1252"))
    assert "read as cp1252 it says" in refusal(path)


@pytest.mark.parametrize(("written", "meant"), [("on", "true"), ("off", "false"), ("Yes", "true"), ("n", "false")])
def test_a_word_of_yaml_1_1_where_true_or_false_is_wanted_says_what_to_write(written, meant):
    message = refusal(REPOSITORY / "config.yaml", f"optimization.gradient_checkpointing={written}")
    assert message.endswith(f"(got '{written}'); write {meant}")


ODD = ("", "''", "x", "-1", "0", "1e999", ".inf", ".nan", "18446744073709551616", "1e308", "[]", "{}", "true", "~",
       "10:30", "'~/data'", "${HOME}/x", "[[]]", "{a: 1}", "[1, x]", "0.5", "' '", "'{{ x }}'", '"\\0"',
       "9" * 400)  # fmt: skip


def keys_of(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every key of config.yaml, the sections themselves included."""
    found = []
    for name, field in model.model_fields.items():
        dotted = f"{prefix}{name}"
        section = section_of(field.annotation)
        found += [dotted, *(keys_of(section, f"{dotted}.") if section and dotted != "tools" else [])]
    return (
        [*found, *(f"tools.0.{name}" for name in ("name", "description", "parameters", "examples"))]
        if not prefix
        else found
    )


SMALL = """
model: {name: m}
tools:
  - {name: one, description: first, examples: [{query: a}]}
  - {name: two, description: second}
"""


@pytest.mark.parametrize("key", keys_of(Config))
def test_an_odd_value_of_any_key_is_accepted_or_refused_and_never_a_bug(tmp_path, key):
    path = tmp_path / "config.yaml"
    path.write_text(SMALL)
    for value in ODD:
        try:
            accepted = load_config(path, [f"{key}={value}"])
        except UserError:
            continue
        assert accepted.as_dict()


REFUSED_VALUES = {
    "training.seed": ("-1", "4294967296", "1.5", "~"),
    "dataset.seed": ("-1", "4294967296"),
    "evaluation.seed": ("-1", "4294967296"),
    "training.learning_rate": (".inf", ".nan", "0", "-1e-4", "1e999", "'2e-4'"),
    "training.weight_decay": (".inf", ".nan"),
    "training.num_train_epochs": ("1e300", "0"),
    "training.per_device_train_batch_size": ("0", "-8", "99999999999999999999"),
    "training.output_dir": ("''", "'~/out'", "$HOME/out", "'{{ out }}'", "~"),
    "dataset.dir": ("output", "./output", "''"),
    "evaluation.results_dir": ("data", "output"),
    "model.name": ("''", "' '", "~", "~/models/m", "${MODEL}"),
    "lora.alpha": (".inf", "0"),
}


@pytest.mark.parametrize(("key", "values"), REFUSED_VALUES.items(), ids=REFUSED_VALUES)
def test_values_that_would_do_harm_later_are_refused_now(key, values):
    for value in values:
        assert refusal(REPOSITORY / "config.yaml", f"{key}={value}"), value
