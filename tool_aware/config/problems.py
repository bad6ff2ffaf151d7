"""Errors of a config in words: each mistake once, with its dotted key."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tool_aware.secret_values import masked

_UNION_MEMBER = re.compile(r"bool|int|float|str|list\[str\]|literal\[.*\]|constrained-\w+")  # in pydantic's locations

_BOOLEANS = {
    **dict.fromkeys(("on", "yes", "y", "true", "1"), "true"),
    **dict.fromkeys(("off", "no", "n", "false", "0"), "false"),
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def explain(error: ValidationError, config: type[BaseModel]) -> Iterator[str]:
    """Yield one line a mistake, with its dotted key and, for an unknown one, the key that was probably meant."""
    for location, item in _one_each(error):
        dotted = ".".join(map(str, location))
        if item["type"] == "extra_forbidden":
            yield f"  {dotted}: unknown key{_suggestion(location, config)}"
        elif item["type"] == "missing":
            yield f"  {dotted}: missing"
        else:
            is_path = item["type"] == "path_type"
            reason = "must be a path" if is_path else item["msg"].removeprefix("Value error, ")
            value = item["input"]
            shown = f" (got {masked(repr(value)):.80})" if not isinstance(value, BaseModel | dict) else ""
            place = f"{dotted}: " if dotted else ""
            yield f"  {place}{reason[0].lower()}{reason[1:]}{shown}{_hint(value, item)}"


def _hint(value: object, item: ErrorDetails) -> str:
    """Return what to write instead of a value of another type, where it can be guessed."""
    kinds = item["type"]
    if value is None and kinds in ("model_type", "dict_type", "list_type", "model_attributes_type"):
        return "; leave the key out, or write what belongs below it"
    if not isinstance(value, str) or kinds == "value_error":
        return ""
    if re.search(r"\$\{?\w|\{\{", value):
        return "; variables are not filled in here: write the value itself"
    if "boolean" in item["msg"] and value.lower() in _BOOLEANS:
        return f"; write {_BOOLEANS[value.lower()]}"
    if kinds.startswith(("int_", "float_")) or "number" in item["msg"] or "integer" in item["msg"]:
        if _NUMBER.fullmatch(value):
            return f"; write {value}, without quotes"
        plain = value.replace("_", "").replace(",", "")
        return f"; write {plain}" if plain != value and _NUMBER.fullmatch(plain) else ""
    return ""


def _one_each(error: ValidationError) -> Iterator[tuple[list[str | int], ErrorDetails]]:
    """Yield each mistake with its place; a value that fits no type of a union is one mistake, not one for each type."""
    found: dict[tuple[str | int, ...], ErrorDetails] = {}
    for item in error.errors():
        place = tuple(part for part in item["loc"] if not _UNION_MEMBER.fullmatch(str(part)))
        if place in found:
            found[place]["msg"] += f" or {item['msg'].removeprefix('Input should be ')}"
        found.setdefault(place, item)
    return ((list(place), item) for place, item in found.items())


def _suggestion(location: Sequence[str | int], config: type[BaseModel]) -> str:
    key = str(location[-1])
    unseen = [
        f"U+{ord(letter):04X}" for letter in key if unicodedata.category(letter) in ("Cf", "Zs") and letter != " "
    ]
    if unseen:
        return f"; it holds {', '.join(unseen)}, which cannot be seen or looks like a blank: type it anew"
    if re.search(r"password|token|secret|api_key", key, re.IGNORECASE):
        return "; secrets belong in the environment or in .env (HF_TOKEN, POSTGRES_PASSWORD), never in this file"
    names = _known_keys(location[:-1], config)
    own, own_likeness = _nearest(key, names, cutoff=0.6)
    homes = _homes(config)
    other, likeness = _nearest(key, list(homes), cutoff=0.8)  # a wrong section is worse than none
    if likeness > own_likeness:
        return f"; did you mean {' or '.join(homes[other])}?"
    if own:
        return f"; did you mean {own}?"
    return f"; known here: {', '.join(names)}"


def _nearest(key: str, names: Sequence[str], *, cutoff: float) -> tuple[str, float]:
    """Return the name most like `key` and the likeness, 0-1; an empty name and 0 if none reaches the cutoff."""
    near = difflib.get_close_matches(key.lower(), names, n=1, cutoff=cutoff)
    return (near[0], difflib.SequenceMatcher(None, near[0], key.lower()).ratio()) if near else ("", 0.0)


def _homes(config: type[BaseModel], path: str = "") -> dict[str, list[str]]:
    """Return the dotted paths of every key of the config by its name; the keys of a list's items are left out."""
    homes: dict[str, list[str]] = {}
    for name, field in config.model_fields.items():
        homes.setdefault(name, []).append(path + name)
        if isinstance(field.annotation, type) and (section := section_of(field.annotation)):
            for below, paths in _homes(section, f"{path}{name}.").items():
                homes.setdefault(below, []).extend(paths)
    return homes


def _known_keys(location: Sequence[str | int], config: type[BaseModel]) -> list[str]:
    model = config
    for part in location:
        if isinstance(part, int):
            continue
        below = section_of(model.model_fields[part].annotation)
        if below is None:
            return []
        model = below
    return list(model.model_fields)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, alone or in a list; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, Union, Annotated):
        return next(filter(None, map(section_of, get_args(annotation))), None)
    return None
