"""config.yaml explains every key, in the words that stand under the key's field in the code."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.problems import section_of
from tool_aware.config.sections import Section
from tool_aware.config.settings import Config

TEXT = (REPOSITORY / "config.yaml").read_text(encoding="utf-8")
FILES = sorted([*REPOSITORY.glob("config*.yaml"), *(REPOSITORY / "launch").glob("*.yaml")])
TOOLS = "tools"  # a list of entries: its keys are documented in the code and in docs/FORMATS.md


def comments_of(text: str) -> dict[str, str]:
    """Return the comment above each key by the key's dotted path, lines joined; "" where there is none."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"\s*# (.*)", line):
            comment.append(match[1])
            continue
        if match := re.match(r"( *)(\w+):", line):
            indent = len(match[1])
            path = [(depth, key) for depth, key in path if depth < indent] + [(indent, match[2])]
            found[".".join(key for _, key in path)] = " ".join(comment)
        comment = []
    return found


@cache
def docs_of(section: type[Section]) -> dict[str, str]:
    """Return the docstring under each field of a section, lines joined; "" where there is none."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_doc = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            docs[node.target.id] = inspect.cleandoc(following.value.value).replace("\n", " ") if is_doc else ""
    return docs


def is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def expected_comments(section: type[Section] = Config, prefix: str = "") -> dict[str, str]:
    """Return what config.yaml should say above each key: a section's docstring, or the one under a field."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        below = field.annotation
        if is_section(below):
            found[prefix + name] = inspect.getdoc(below).replace("\n", " ")
            found |= expected_comments(below, f"{prefix}{name}.")
        else:
            found[prefix + name] = docs_of(section)[name]
    return found


EXPECTED = expected_comments()
WRITTEN = {key: text for key, text in comments_of(TEXT).items() if key in EXPECTED}


@pytest.mark.parametrize("key", EXPECTED)
def test_the_comment_above_a_key_is_the_documentation_of_its_field(key):
    assert EXPECTED[key]
    assert WRITTEN[key] == EXPECTED[key], f"write above {key}: {EXPECTED[key]}"


def sections_below(section: type[Section]) -> set[type[Section]]:
    """Return a section and all that its fields hold, those in lists included."""
    below = {found for field in section.model_fields.values() if (found := section_of(field.annotation))}
    return {section}.union(*map(sections_below, below))


@pytest.mark.parametrize("section", sorted(sections_below(Config) - {Config}, key=lambda kind: kind.__name__))
def test_every_field_is_documented(section):
    plain = [name for name, field in section.model_fields.items() if not is_section(field.annotation)]
    assert not [name for name in plain if not docs_of(section)[name]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_comments_stand_above_the_keys_and_lines_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 100]
    assert not [line for line in lines if re.search(r"\S\s+# ", line)]


def test_what_is_changed_first_stands_first_and_the_budget_beside_what_it_governs():
    order = list(comments_of(TEXT))
    sections = [key for key in order if "." not in key]
    assert sections[:4] == ["model", TOOLS, "dataset", "database"]
    assert order.index("optimization") == order.index("training.memory_budget_gib") + 1


def test_a_missing_comment_is_noticed():
    shortened = TEXT.replace("  # Adapter, merged model, checkpoints", "  adapter, merged model, checkpoints", 1)
    assert shortened != TEXT
    assert comments_of(shortened)["training.output_dir"] == ""
