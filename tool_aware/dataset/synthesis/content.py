"""Loads the content that rows are made of from YAML, and checks all of it before the first row is made.

Below `content/`:
    mix.yaml            share of each slice in the dataset
    fillers.yaml        slots that mean the same everywhere (names, cities, numbers)
    domains/*.yaml      slots by domain: within one sentence all of them come from the same domain
    reasons.yaml        tool -> kind -> one-sentence patterns that quote the evidence
    noise.yaml          greetings, surrounding sentences, decoys, injected instructions
    search_words.yaml   by language, the words that a search text leaves out
    qualifiers/*.yaml   what stands behind the object of a request, by language; see qualifiers.py
    frames/*/*.yaml     the sentences, one a line, in files by language, tool and slice:
        en/direct_chat_terse.yaml             English; `_plain_advice` and the like where a slice fills several files
        en/pairs_contrast.yaml                pairs and triples of several tools that differ in the deciding words
        de/web_search.yaml                    other languages; their slice is `language`
        many/code_execution_plain.yaml        programs asked for in many languages, by kind

A file is a list of blocks. Keys of a block: `tool` and `say` (sentences, or sentences by language), or `pairs` (one
sentence by tool); and where they differ from the usual, `slice`, `language`, `kind`, `acceptable`, `slots`, `code`,
`name` (of the program), `wrap` (false: without noise), `share`, `id_prefix`. Ids seed the random draws: a sentence that
moves to another file makes the same rows as before; other words or another `id_prefix` make new ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tool_aware.config.yaml_file import shipped_yaml
from tool_aware.console import UserError, listing
from tool_aware.dataset.synthesis import fillers, frames
from tool_aware.dataset.synthesis.qualifiers import OBJECT_SLOT, Qualifiers, load_qualifiers
from tool_aware.dataset.synthesis.search_text import SearchWords, search_words

CONTENT_DIR = Path(__file__).parent / "content"
SEARCH_TOOLS = ("rag_retrieval", "web_search")  # get the content words of a request; see search_text.py
COUNT_SLOT = "count"  # "top {count} results": sets the tool's integer parameter

_BLOCK_KEYS = {
    "tool", "slice", "language", "kind", "acceptable", "slots", "code", "name", "say", "pairs", "wrap", "share",
    "id_prefix",
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """A sentence pattern and what it means.

    `id` depends on the pattern and its block's `id_prefix`, not on the file, so adding or moving frames changes no
    other frame's rows. `group` is what splits keep together: the frame itself, or the contrast pair it is one side of.
    `program` names the program that it asks for, as other frames do in other words.
    """

    id: str
    group: str
    tool: str
    slice: str
    language: str
    kind: str
    pattern: str
    acceptable: tuple[str, ...] = ()
    slots: Mapping[str, Any] | None = None
    code: str | None = None
    is_wrapped: bool = True
    share: float = 1.0
    program: str = ""


@dataclass(frozen=True)
class Content:
    """Everything below `content/`, checked."""

    frames: tuple[Frame, ...]
    mix: Mapping[str, float | Mapping[str, float]]
    common: Mapping[str, Any]
    domains: Mapping[str, Mapping[str, Sequence[str]]]
    reasons: Mapping[str, Mapping[str, Sequence[str]]]
    noise: Mapping[str, Any]
    search_words: Mapping[str, SearchWords]
    qualifiers: Mapping[str, Qualifiers]

    def share(self, slice_: str, tool: str) -> float:
        """Return the share of a slice among the rows of a tool, in any unit."""
        share = self.mix[slice_]
        return share if isinstance(share, int | float) else share.get(tool, share["other"])

    def domains_with(self, slots: Sequence[str]) -> list[str]:
        """Return the names of the domains that fill every one of the given slots."""
        return [name for name, domain in self.domains.items() if all(slot in domain for slot in slots)]


def load_content(directory: Path = CONTENT_DIR) -> Content:
    """Return all content, read and checked; that of the toolkit once in a process.

    Raises UserError listing every problem with file and pattern: unknown keys and slots, unbalanced marks,
    two frames that are the same, slots that no single domain fills, missing reasons.
    """
    return _own_content() if directory == CONTENT_DIR else _read_and_check(directory)


@cache
def _own_content() -> Content:
    return _read_and_check(CONTENT_DIR)


def _read_and_check(directory: Path) -> Content:
    problems: list[str] = []
    content = Content(
        frames=tuple(sorted(_frames(directory, problems), key=lambda frame: frame.id)),
        mix=_read(directory / "mix.yaml"),
        common=_read(directory / "fillers.yaml"),
        domains={path.stem: dict(_read(path)) for path in sorted((directory / "domains").glob("*.yaml"))},
        reasons=_read(directory / "reasons.yaml"),
        noise=_read(directory / "noise.yaml"),
        search_words=search_words(_read(directory / "search_words.yaml")),
        qualifiers=load_qualifiers(directory / "qualifiers"),
    )
    problems += _problems(content)
    if problems:
        raise UserError(listing(problems, "problem"), where=str(directory))
    return content


def _read(path: Path) -> Any:
    try:
        return shipped_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(str(error), where=str(path)) from error


def _frames(directory: Path, problems: list[str]) -> Iterator[Frame]:
    folder = directory / "frames"
    for path in sorted(folder.rglob("*.yaml")):
        for block in _read(path):
            unknown = set(block) - _BLOCK_KEYS
            if unknown:
                problems.append(f"{path.relative_to(folder)}: unknown keys {sorted(unknown)}")
            yield from _frames_of(block)


def _frames_of(block: Mapping[str, Any]) -> Iterator[Frame]:
    shared = {
        "slice": block.get("slice", "plain"),
        "acceptable": tuple(block.get("acceptable", ())),
        "slots": block.get("slots"),
        "code": block.get("code"),
        "is_wrapped": block.get("wrap", True),
        "share": float(block.get("share", 1.0)),
        "program": block.get("name", ""),
    }
    for pair in block.get("pairs", ()):
        group = f"pair-{_digest(repr(sorted(pair.items())))}"
        for tool, pattern in pair.items():
            kind = block.get("kind", "contrast")
            yield Frame(f"{group}-{tool}", group, tool, language="en", kind=kind, pattern=pattern, **shared)
    by_language = block.get("say", ())
    if not isinstance(by_language, Mapping):
        by_language = {block.get("language", "en"): by_language}
    for language, patterns in by_language.items():
        for pattern in map(str, patterns):
            prefix = block.get("id_prefix", f"{language}-{block['tool']}")
            identity = f"{prefix}-{_digest(pattern)}"
            details = {**shared, "slice": shared["slice"] if language == "en" else "language"}
            kind = block.get("kind", "plain")
            yield Frame(identity, identity, block["tool"], language=language, kind=kind, pattern=pattern, **details)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _slots(content: Content, domain_slots: Collection[str], language: str) -> frozenset[str]:
    """Return the slots that any frame of a language may have."""
    objects = content.qualifiers[language].objects if language in content.qualifiers else ()
    return frozenset((*content.common, *domain_slots, COUNT_SLOT, *(f"{OBJECT_SLOT}{name}" for name in objects)))


def _problems(content: Content) -> Iterator[str]:
    domain_slots = {slot for domain in content.domains.values() for slot in domain}
    seen: dict[tuple[str, str, str], str] = {}
    ids = Counter(frame.id for frame in content.frames)
    checked: dict[int, str | None] = {}  # the frames of a block share its slots
    for language, qualifiers in content.qualifiers.items():
        yield from (f"qualifiers/{language}.yaml: {problem}" for problem in qualifiers.problems())
    slots = {language: _slots(content, domain_slots, language) for language in {one.language for one in content.frames}}
    for frame in content.frames:
        where = f"{frame.id} {frame.pattern!r:.70}"
        local = frame.slots or {}
        known = local.keys() | slots[frame.language]
        yield from (f"{where}: {problem}" for problem in frames.problems_of(frame.pattern, known))
        needed = [slot for slot in frames.slots_of(frame.pattern) if slot in domain_slots and slot not in local]
        if needed and not content.domains_with(needed):
            yield f"{where}: no domain fills all of {', '.join(needed)}"
        if frame.slice not in content.mix:
            yield f"{where}: slice {frame.slice!r} has no share in mix.yaml"
        if frame.kind not in content.reasons.get(frame.tool, {}):
            yield f"{where}: reasons.yaml has no {frame.tool}.{frame.kind}"
        same = (frame.pattern, frame.tool, frame.language)  # slots differ by language
        if same in seen:
            yield f"{where}: the same as {seen[same]}"
        elif ids[frame.id] > 1:
            yield f"{where}: the same pattern in another language; word one of them in another way"
        seen[same] = frame.id
        for slot, spec in local.items():
            if id(spec) not in checked:
                checked[id(spec)] = fillers.problem_of(spec)
            if problem := checked[id(spec)]:
                yield f"{where}: slot {slot}: {problem}"
    for slot, spec in content.common.items():
        problem = fillers.problem_of(spec)
        if problem:
            yield f"fillers.yaml: {slot}: {problem}"
