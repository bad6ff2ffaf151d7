"""Read YAML files that may extend one another; a key given twice is an error, and `2e-4` is a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tool_aware.console import UserError


def read_yaml_file(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file; its values replace those of the file that it names with `extends`. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(
            "not found", where=str(path), fix="run from the toolkit's folder, or name a file with --config"
        ) from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from error
    values = _read_yaml(text, str(path))
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"must be a mapping of sections, not {type(values).__name__}"
        raise UserError(what, where=str(path), fix="start from the config.yaml in the repository")
    if "extends" not in values:
        return values
    base = path.parent / str(values.pop("extends"))
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
    """Set `section.key=value` in place; list items are named by their index.

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
    node[keys[-1]] = _read_yaml(value, f"--set {override}")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two differences: `2e-4` is a number, and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader subclass: builds plain values only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise UserError(error.problem or "is not YAML", where=f"{where}:{mark.line + 1}" if mark else where) from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"is not YAML: {error}", where=where) from error
