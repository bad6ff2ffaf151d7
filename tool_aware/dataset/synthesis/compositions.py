"""Puts computations together from parts: a source of data, none to two steps, and what is wanted of the result.

Each part is one statement of the program and a few ways to say it, in `content/compositions/`, a file for each type of
data. The words of a request follow from those of its parts, its program from their statements, always under the same
names, so that what a word means in a program can be learnt from any request that has it. Of all combinations whose
parts fit together a share is taken (`kept` in templates.yaml), the same on every machine.

Keys of a part, beside `name`, `code` and its words by language:
    source  `slots` of its data; `drawn`: what steps draw for such data, by name; `is_decimal`: not of whole numbers
    step    `draws`: slot -> name in `drawn`; `kind`: no two of a kind; `drops` some items or `picks` so many of
            them; `orders`, `presents` (of words): changes how they look; `may_empty`, `leaves_one`: what may be left
    end     `before`: an import; `before_steps`: a line ahead of the steps; `print`: the last line; `digits` of it;
            `is_figure`: one value, of which the order is no part; `is_count`: what the items are like is none either
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

from tool_aware.dataset.synthesis.pools import pools

COMPOSED = "composed"  # the kind of these frames
TEMPLATES = "templates.yaml"
_NUMBER_OF_STEPS = ("none", "one", "two")
_FRAMES = {"en": 2}  # of a combination; of other languages one each
_OTHER_LANGUAGES = 1  # of those that all its parts have words in
_SOURCES = (3, 1, 1)  # that an end is asked for with, by the number of steps before it
_DIGITS_SHARE = 0.4  # of the computations with fractions: so many are asked for with a number of decimals
_DIGITS = (0, 1, 1, 2, 2, 2, 3)
_CAPITAL_SHARE = 0.5
_MARK_SHARE = 0.6
_FRACTIONS = re.compile(r" / |\*\* 0\.5|statistics\.|\* \d+\.\d+ for|/ 1\.\d+")
_LEAD = re.compile(r"\{lead\}(?:[:.;,]| -| :)? ?")
_PLAIN_CHANGES = {  # of these, by kind, two may follow one another
    "scale", "shift", "percent", "unit", "rounded", "fee", "tax", "exchange", "distinct", "case", "cut", "spaces",
    "signs", "letter", "mirror",
}  # fmt: skip
_SCALES = ("limit", "low", "high", "divisor")  # drawn for the data as they were typed

Part = Mapping[str, Any]


@dataclass(frozen=True)
class Composed:
    """A computation in the words of one language: pattern, slots and program of a frame."""

    id: str
    group: str
    type: str
    language: str
    pattern: str
    slots: Mapping[str, Any]
    code: str


@dataclass(frozen=True)
class Combination:
    """Parts that fit together."""

    type: str
    source: Part
    steps: tuple[Part, ...]
    end: Part

    @property
    def group(self) -> str:
        """Return the name of the computation, whatever its source: its requests stay in one split."""
        steps = "+".join(step["name"] for step in self.steps) or "as_is"
        return f"{COMPOSED}-{self.type}-{steps}-{self.end['name']}"

    @property
    def slots(self) -> dict[str, Any]:
        """Return the slots of the source and those of the steps, which have their number behind their names."""
        slots = dict(self.source["slots"])
        for number, step in enumerate(self.steps, 1):
            drawn = step.get("draws", {})
            slots |= {f"{slot}{number}": self.source["drawn"][name] for slot, name in drawn.items()}
        return slots

    @property
    def lines(self) -> list[str]:
        """Return the program without its last line."""
        imports = [part["before"] for part in (self.source, self.end) if "before" in part]
        steps = [_numbered(step["code"], step, number) for number, step in enumerate(self.steps, 1)]
        between = [self.end["before_steps"]] if "before_steps" in self.end else []
        return [*imports, self.source["code"], *between, *steps, self.end["code"]]

    @property
    def has_fractions(self) -> bool:
        """Return whether a number of decimals may be asked for."""
        if any(step["kind"] == "rounded" for step in self.steps):
            return False
        is_decimal = self.source.get("is_decimal", False)
        return "digits" in self.end and bool(is_decimal or _FRACTIONS.search("\n".join(self.lines)))

    def program(self, digits: int | None = None) -> str:
        """Return the program, which prints so many decimals, or as many as the end has where none are asked for."""
        last = self.end.get("print")
        if last is None:
            digits = self.end.get("digits") if digits is None else digits
            shown = "result" if digits is None else f"round(result, {digits})" if digits else "round(result)"
            last = f"print({shown})"
        return "\n".join([*self.lines, last] if last else self.lines)


def compose(files: Mapping[str, Mapping[str, Any]]) -> Iterator[Composed]:
    """Yield the computations of all types in all languages; `files` has the content of each file by its stem."""
    templates = files.get(Path(TEMPLATES).stem)
    if templates is None:
        return
    seen: set[str] = set()
    for type_, parts in sorted(files.items()):
        if parts is templates:
            continue
        for combination in combinations(type_, parts, templates["kept"]):
            for said in _said(combination, templates):
                if said.pattern not in seen:
                    seen.add(said.pattern)
                    yield said


def combinations(type_: str, parts: Mapping[str, Sequence[Part]], kept: Mapping[str, float]) -> Iterator[Combination]:
    """Yield the combinations of parts of one type that fit together, so many of each number of steps."""
    for count, name in enumerate(_NUMBER_OF_STEPS):
        for steps in permutations(parts["steps"], count):
            if not _are_in_order(steps):
                continue
            for end in parts["ends"]:
                names = f"{type_}/{'+'.join(step['name'] for step in steps)}/{end['name']}"
                is_kept = zlib.crc32(names.encode()) / 2**32 < kept.get(f"{name}_{type_}", kept[name])
                if not is_kept or not _fits(steps, end):
                    continue
                among = [source for source in parts["sources"] if _is_for(source, steps, end)]
                for source in random.Random(names).sample(among, min(_SOURCES[count], len(among))):
                    yield Combination(type_, source, steps, end)


def _are_in_order(steps: Sequence[Part]) -> bool:
    """Return whether the second step can follow the first."""
    if len(steps) < 2:
        return True
    first, second = steps
    is_changed = _is_change(first)
    is_of_scale = second.get("needs_whole") or not set(second.get("draws", {}).values()).isdisjoint(_SCALES)
    return not (
        first["kind"] == second["kind"]
        or second.get("is_first")
        or first.get("list_only")
        or (first.get("orders") and second["kind"] != "place")
        or (is_changed and is_of_scale)
        or (is_changed and _is_change(second) and not {first["kind"], second["kind"]} <= _PLAIN_CHANGES)
        or (first.get("presents") and second.get("drops"))
        or (first.get("picks") and second.get("drops"))
    )


def _is_change(step: Part) -> bool:
    """Return whether a step makes other items of all, in their order."""
    return not any(step.get(key) for key in ("drops", "picks", "orders"))


def _fits(steps: Sequence[Part], end: Part) -> bool:
    """Return whether the end can follow the steps and says something that it would not say without them."""
    last = steps[-1] if steps else {}
    drops = [step for step in steps if step.get("drops")]
    is_figure, is_count = end.get("is_figure"), end.get("is_count")
    return not (
        (end.get("is_list") and not steps)
        or (end.get("no_steps") and steps)
        or (end.get("needs_drop") and (not drops or len(drops) < len(steps)))
        or (end.get("no_drop") and any(step.get("drops") or step.get("picks") for step in steps))
        or (end.get("needs_order") and not (last.get("orders") or last["kind"] == "place" if steps else False))
        or (is_figure and (last.get("orders") or any(step.get("list_only") for step in steps)))
        or (is_figure and any(step["kind"] == "order" for step in steps) and is_count)
        or (is_count and any(not step.get("drops") and step["kind"] not in ("distinct", "letter") for step in steps))
        or (end.get("is_extreme") and any(step["kind"] in ("extremes", "place") for step in steps))
        or (end.get("per_group") and any(step["kind"] in ("group", "order") for step in steps))
        or (end.get("no_change") and any(map(_is_change, steps)))
        or (end.get("no_unique") and any(step["kind"] == "distinct" for step in steps))
        or (is_figure and any(step.get("presents") for step in steps))
        or (end.get("needs_two") and any(step.get("leaves_one") for step in steps))
    )


def _is_for(source: Part, steps: Sequence[Part], end: Part) -> bool:
    """Return whether the parts fit the data, and enough of them is left for the end."""
    name = source["name"]
    if any(name not in part.get("only", [name]) for part in (*steps, end)):
        return False
    if any(drawn not in source["drawn"] for step in steps for drawn in step.get("draws", {}).values()):
        return False
    if source.get("is_decimal") and any(step.get("needs_whole") for step in steps):
        return False
    if source.get("is_long") and not end.get("is_figure") and not any(step.get("picks") for step in steps):
        return False
    drops = [step for step in steps if step.get("drops")]
    may_empty = len(drops) > 1 or any(step.get("may_empty") for step in steps) or (drops and source.get("may_empty"))
    needs_some = end.get("needs_some") or end.get("needs_two") or end.get("print") == "" or "join(" in end["code"]
    return not (may_empty and needs_some)


def _numbered(text: str, step: Part, number: int) -> str:
    """Return code or words of a step with its number behind the names of its slots."""
    for slot in step.get("draws", {}):
        text = text.replace(f"{{{slot}}}", f"{{{slot}{number}}}")
    return text


# ---- words ----


def _said(combination: Combination, templates: Mapping[str, Any]) -> Iterator[Composed]:
    parts = (combination.source, *combination.steps, combination.end)
    common = [language for language in templates["want"] if all(language in part for part in parts)]
    others = [language for language in common if language != "en"]
    name = f"{combination.group}/{combination.source['name']}"
    chosen = random.Random(name).sample(others, min(_OTHER_LANGUAGES, len(others)))
    for language in ["en", *sorted(chosen)]:
        for number in range(_FRAMES.get(language, 1)):
            worded = _worded(combination, templates, language, random.Random(f"{name}/{language}/{number}"))
            if worded:
                pattern, digits = worded
                identity = f"{combination.group}-{combination.source['name']}-{language}-{number}"
                program = combination.program(digits)
                type_, slots = combination.type, combination.slots
                yield Composed(identity, combination.group, type_, language, pattern, slots, program)


def _worded(
    combination: Combination, templates: Mapping[str, Any], language: str, random_: random.Random
) -> tuple[str, int | None] | None:
    """Return a request for a computation, and how many decimals it asks for; None for want of words."""
    known = _words(combination, templates, language, random_)
    among = templates[_NUMBER_OF_STEPS[len(combination.steps)]][language]
    usable = [one for one in among if _places(one) <= known.keys()]
    if not usable:
        return None
    pattern, digits = random_.choice(usable), None
    if combination.has_fractions and random_.random() < _DIGITS_SHARE:
        digits = random_.choice(_DIGITS)
    wanted = f", {random_.choice(pools()['rounding'][language][digits])}" if digits is not None else ""
    last = next(slot for slot in ("ask", "do", "np") if re.search(rf"\{{{slot}\}}", pattern, re.IGNORECASE))
    known[last], mark = _question(known[last], templates["question"][language], random_)
    if last == "np" and known.get("want") in templates["one_of"].get(language, ()) and "{want}" in pattern.lower():
        mark = templates["question"][language]["marks"][1]
    if combination.source[language]["lead"] and known["lead"].endswith("\n"):
        pattern = _LEAD.sub("{lead}", pattern)
    known["digits"] = wanted + mark
    pattern = re.sub(r"\{(\w+)\}", lambda slot: _filled(known, slot[1]), pattern)
    pattern = re.sub(r" +,", ",", pattern)
    pattern = re.sub(r"\? ?:(?= |\n)", "?", pattern)
    pattern = re.sub(r" +\n", "\n", pattern).strip()
    return (_capital(pattern) if random_.random() < _CAPITAL_SHARE else pattern), digits


def _words(
    combination: Combination, templates: Mapping[str, Any], language: str, random_: random.Random
) -> dict[str, str]:
    """Return the words of the parts by their place in a template."""
    source, end = combination.source[language], combination.end[language]
    known = {place: random_.choice(source[place]) for place in ("lead", "of", "tail") if place in source}
    known["digits"] = ""
    want = random_.choice(_wants(combination.end, templates, language))
    names = end.get("np", [])
    if names:
        known["np"] = random_.choice(names)
        has_article = known["np"].startswith(tuple(templates["article"][language]))
        known["want"] = want if has_article else ""
    questions = end.get("ask", [])
    if names and (not questions or random_.random() < 0.5):
        known["ask"] = f"{known['want']} {known['np']}".strip()
    elif questions:
        known["ask"] = random_.choice(questions)
    if end.get("do") or names:
        known["do"] = random_.choice(end.get("do") or names)
    for number, step in enumerate(combination.steps, 1):
        said = step[language]
        known[f"do{number}"] = _numbered(random_.choice(said["do"]), step, number)
        known[f"as{number}"] = _numbered(random_.choice(said["as"]), step, number)
        asides = [one for one in said["as"] if one.startswith(",")]
        if asides:
            known[f"aside{number}"] = _numbered(random_.choice(asides), step, number)
    return known


def _wants(end: Part, templates: Mapping[str, Any], language: str) -> list[str]:
    """Return what may stand before the name of the result."""
    one_of = [] if end.get("plural") else templates["one_of"].get(language, [])
    return [*templates["want"][language], *one_of]


def _question(text: str, marks: Mapping[str, Any], random_: random.Random) -> tuple[str, str]:
    """Return a question without the mark at its end, and that mark, which some leave out."""
    opening, closing = marks["marks"]
    if text.endswith("?"):
        return text.rstrip(" ?"), closing
    if text.lower().startswith(tuple(marks["words"])) and random_.random() < _MARK_SHARE:
        return opening + text, closing
    return text, ""


@cache
def _places(template: str) -> frozenset[str]:
    """Return the places of a template, whether they begin with a capital or not."""
    return frozenset(place.lower() for place in re.findall(r"\{(\w+)\}", template))


def _filled(known: Mapping[str, str], slot: str) -> str:
    return known[slot] if slot[0].islower() else _capital(known[slot.lower()])


def _capital(text: str) -> str:
    """Return the text with a capital at its start, behind marks."""
    at = next((at for at, letter in enumerate(text) if letter not in "¿*("), 0)
    return text[:at] + text[at : at + 1].upper() + text[at + 1 :]
