"""Read YAML files that may extend one another.

Scalars are those of YAML 1.2's core schema, in which `on`, `no`, `10:30` and `2026-01-31` are texts and `2e-4` is a
number. A key given twice is an error, and so is what has no counterpart in JSON.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tool_aware.console import UserError
from tool_aware.text_files import parse_json, read_text

# Settings that are paths. On a command line they stand as they are: `run #3`, `2024` and `a: b` are names of folders.
PATH_KEYS = frozenset(
    {"model.name", "dataset.dir", "dataset.splits_from", "training.output_dir", "evaluation.results_dir"}
)
_MAY_BE_ABSENT = frozenset({"dataset.splits_from"})

_TAG = "tag:yaml.org,2002:"
_MOST_VALUES = 100_000  # of a file once its aliases are followed; config.yaml has 400
_DEEPEST = 100  # levels; JSON Schemas of tools have up to ten
_TEMPLATE = "fill in what a template left open, such as {{ name }}; a text that begins with { needs quotes"


def read_yaml_file(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file; its values replace those of the file that it names with `extends`. Raises UserError."""
    if not path.exists() or path.is_dir():
        fix = "run from the toolkit's folder, or name a file with --config"
        if extended_by:
            fix = f"{extended_by[-1]} names it with extends, which takes a file"
        raise UserError("is a folder" if path.is_dir() else "not found", where=str(path), fix=fix)
    values = _read_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"must be a mapping of sections, not {type(values).__name__}"
        raise UserError(what, where=str(path), fix="start from the config.yaml in the repository")
    if "extends" not in values:
        return values
    name = values.pop("extends")
    if not isinstance(name, str) or not name:
        raise UserError(f"extends must name one file, not {name!r:.80}", where=str(path), fix="extends: config.yaml")
    base = path.parent / name
    if base.resolve() in (*extended_by, path.resolve()):
        raise UserError(f"extends {base}, which extends it", where=str(path))
    return _merged(read_yaml_file(base, (*extended_by, path.resolve())), values)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_are_sections = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both_are_sections else value
    return merged


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in place; list items are named by their index. Values are YAML but for PATH_KEYS.

    Raises UserError if there is no such place.
    """
    dotted, equals, value = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: expected section.key=value", fix="for example --set lora.r=16")
    node: Any = values
    for key in keys[:-1]:
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise UserError(f"--set {override}: {key!r} is not an index into a list of {len(node)}")
            node = node[int(key)]
        else:
            node = node.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise UserError(f"--set {override}: {key} is a value, not a section")
    if isinstance(node, list):
        raise UserError(f"--set {override}: cannot replace an item of a list; set one of its keys")
    is_path = ".".join(keys) in PATH_KEYS
    node[keys[-1]] = path_in(override) if is_path else _read_yaml(value, f"--set {override}")


def path_in(override: str) -> str | None:
    """Return the path that an override of one of PATH_KEYS gives: as it was typed, or quoted as in YAML or JSON.

    `null` is None where a path may be absent.
    """
    dotted, _, value = override.partition("=")
    if value == "null" and dotted.strip() in _MAY_BE_ABSENT:
        return None
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        with contextlib.suppress(ValueError, UserError):
            quoted = parse_json(value) if value[0] == '"' else _read_yaml(value, f"--set {override}")
            return quoted if isinstance(quoted, str) else value
    return value


def path_override(key: str, path: Path) -> str:
    """Return the override that sets one of PATH_KEYS to exactly that path."""
    plain = f"{key}={path}"
    return plain if path_in(plain) == str(path) else f"{key}={json.dumps(str(path))}"


# ---- scalars: https://yaml.org/spec/1.2.2/#103-core-schema ---------------------------------------------------

_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2 and the merge key `<<` of 1.1, which people use."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[str | None, Callable[..., Any]]] = {}


for _name, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", _pattern, _first)


def _error(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _scalar(name: str, pattern: re.Pattern[str], value_of: Callable[[str], Any]) -> None:
    def construct(loader: _Loader, node: yaml.Node) -> Any:
        text = loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if text is None or not pattern.match(text):  # only a tag, `!!int x`, leads here
            raise _error(f"is no {name}", node)
        try:
            return value_of(text)
        except ValueError:  # Python reads integers of 4,300 digits at most
            raise _error("is a number of too many digits", node) from None

    _Loader.add_constructor(f"{_TAG}{name}", construct)


def _integer(text: str) -> int:
    return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_scalar("null", _NULL, lambda text: None)
_scalar("bool", _BOOL, lambda text: text.lower() == "true")
_scalar("int", _INT, _integer)
_scalar("float", _FLOAT, _float)
_scalar("str", re.compile(""), str)
_scalar("merge", re.compile("<<$"), str)  # a quoted "<<" is a text; this is `[<<]`, which merges nothing


# ---- mappings and lists -----------------------------------------------------------------------------------


def _construct_list(loader: _Loader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _error("is no list", node)
    return [loader.construct_object(item, deep=True) for item in node.value]


def _construct_mapping(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _error("is no mapping", node)
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    is_merged = False
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error("a key must be a text, not a mapping or a list", key_node)
        if key_node.tag == f"{_TAG}merge":
            if is_merged:
                raise _error("duplicate key '<<'; to merge several, write <<: [*one, *other]", key_node)
            merged, is_merged = _merge_of(loader, value_node), True
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _error(f'key {key_node.value} is no text; write "{key_node.value}"', key_node)
        if key in own:
            raise _error(f"duplicate key {key!r}", key_node)
        own[key] = loader.construct_object(value_node, deep=True)
    return {**merged, **own}


def _merge_of(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    """Return what `<<` adds: a mapping, or several, of which the first to have a key gives its value."""
    value = loader.construct_object(node, deep=True)
    parts = value if isinstance(value, list) else [value]
    merged: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, dict):
            raise _error("<< merges mappings only, such as <<: *name", node)
        merged |= {key: item for key, item in part.items() if key not in merged}
    return merged


def _refuse_tag(loader: _Loader, node: yaml.Node) -> Any:
    tag = node.tag.replace(_TAG, "!!")
    raise _error(f"the tag {tag} is not supported: write plain texts, numbers, lists and mappings", node)


_Loader.add_constructor(f"{_TAG}seq", _construct_list)
_Loader.add_constructor(f"{_TAG}map", _construct_mapping)
_Loader.add_constructor(None, _refuse_tag)


class _QuickLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same by libyaml, ten times as fast, where PyYAML has it."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
    yaml_constructors = _Loader.yaml_constructors


# What libyaml reads, and PyYAML's own parser refuses or reads otherwise: tabs, marks of byte order and uncommon line
# ends; tags; directives; "? " in a text within brackets; a comment right behind | or >.
_READ_OTHERWISE = re.compile(r"[\t\ufeff\x85\u2028\u2029]|(?:^|[\s,\[{])!|(?m:^%)|\?(?:\s|$)|[|>][-+\d]*#")


def _values_of(text: str) -> Any:
    """Return the plain values of a YAML text as PyYAML's own parser reads it, which also describes all mistakes."""
    if not _READ_OTHERWISE.search(text):
        with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError):
            return yaml.load(text, Loader=_QuickLoader)
    return yaml.load(text, Loader=_Loader)


def _read_yaml(text: str, where: str) -> Any:
    try:
        return _unshared(_values_of(text), [_MOST_VALUES])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}" if mark and not where.startswith("--set") else where
        what, fix = _in_words(error, text)
        raise UserError(what, where=place, fix=fix) from error
    except yaml.YAMLError as error:
        raise UserError(f"is not YAML: {error}", where=where) from error
    except OverflowError:
        fix = f"write them out; a file may have {_MOST_VALUES:,} values"
        raise UserError("has too many values, most of them through aliases (*name)", where=where, fix=fix) from None
    except RecursionError:
        raise UserError("is nested too deeply", where=where) from None


def _in_words(error: yaml.MarkedYAMLError, text: str) -> tuple[str, str | None]:
    """Return what is wrong and, where it can be told, how to put it right."""
    problem = error.problem or "is not YAML"
    if "another document" in problem:
        return "has a second document (after ---)", "put each into a file of its own; one can extend the other"
    if "'\\t'" in problem:
        return f"{problem}: a tab", "indent with spaces"
    if "'%'" in problem or "{{" in text or "{%" in text:
        return problem, _TEMPLATE
    return problem, None


def _unshared(value: Any, budget: list[int], depth: int = 0) -> Any:
    """Return a copy in which what aliases name is there several times, so that a change in one place stays there.

    Raises OverflowError if more values than `budget` come of it, RecursionError if it is nested too deeply.
    """
    if depth > _DEEPEST:
        raise RecursionError
    budget[0] -= 1
    if budget[0] < 0:
        raise OverflowError
    if isinstance(value, dict):
        return {key: _unshared(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item, budget, depth + 1) for item in value]
    return value


def shipped_yaml(path: Path) -> Any:
    """Return what is in a YAML file of the package; by libyaml, ten times as fast, where PyYAML has it.

    Raises yaml.YAMLError for a text that is no YAML.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # both are safe: plain values only
