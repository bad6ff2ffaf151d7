"""Adds what people say behind the object of a request: a time, a place, what is left out, a condition, a version.

A search text keeps the request from its first content word to its last, so a qualifier, which is the end of what is
asked about, is always kept, whole; closing politeness is part of the asking and is left out. Qualifiers are put
together from open vocabulary (invented_words.py), so that hardly two requests end in the same words.

Below `content/qualifiers/`:
    classes.yaml      tool -> class of object (`paper`, `thing`, ...; `any` for all others) -> kinds that suit it
    en.yaml ...       one file a language
Keys of a language file:
    of_slots      slot of a frame -> class of its qualifiers, where the frame's last slot is this one
    politeness    what is typed behind a request
    words         slot -> words of the language, beside the slots of invented_words.py
    kinds         kind -> patterns; each is one of `time_`, `place_`, `exclusion_`, ... and what it suits
    objects       class -> patterns of long objects: the slots {long_paper} and so on of a frame
Patterns are written as frames are; one that begins with a letter gets a space in front of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_aware.config.yaml_file import shipped_yaml
from tool_aware.dataset.synthesis.frames import choose, slots_of
from tool_aware.dataset.synthesis.invented_words import INVENTED

COMMAS = ",，、"
ATTACHED = COMMAS + "（《「第编"  # what begins with one of these has no space in front of it
OBJECT_SLOT = "long_"  # and a class: a slot of a frame


@dataclass(frozen=True)
class Qualifiers:
    """The qualifiers of one language."""

    of_slots: Mapping[str, str]
    politeness: Sequence[str]
    words: Mapping[str, Sequence[str]]
    kinds: Mapping[str, Sequence[str]]
    classes: Mapping[str, Mapping[str, Sequence[str]]]  # by tool
    objects: Mapping[str, Sequence[str]]
    language: str

    def drawn(self, kinds: Sequence[str], count: int, random_: random.Random) -> list[str]:
        """Return so many qualifiers of these kinds, of different ones, those behind a comma last."""
        chosen: list[str] = []
        for _ in range(count):
            told = {_family(kind) for kind in chosen}
            chosen.append(random_.choice([kind for kind in kinds if _family(kind) not in told] or list(kinds)))
        said = [self.filled(random_.choice(self.kinds[kind]), random_) for kind in chosen]
        return sorted(
            (text if text[0] in ATTACHED else f" {text}" for text in said), key=lambda text: text[0] in COMMAS
        )

    def object(self, class_: str, random_: random.Random) -> str:
        """Return a long object of a class."""
        return self.filled(random_.choice(self.objects[class_]), random_)

    def filled(self, pattern: str, random_: random.Random) -> str:
        """Return a pattern with its slots filled, one that comes twice with two draws."""
        text = choose(pattern, random_)
        for slot in slots_of(text):
            used = ""
            while f"{{{slot}}}" in text:
                word = self._word(slot, random_)
                word = self._word(slot, random_) if word == used else word
                text, used = text.replace(f"{{{slot}}}", word, 1), word
        return text

    def _word(self, slot: str, random_: random.Random) -> str:
        if slot in self.words:
            return random_.choice(self.words[slot])
        return INVENTED[slot](random_, self.language)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the file, in words."""
        known = {*self.words, *INVENTED}
        patterns = [pattern for part in (self.kinds, self.objects) for group in part.values() for pattern in group]
        for pattern in patterns:
            yield from (f"{pattern!r}: unknown slot {{{slot}}}" for slot in slots_of(pattern) if slot not in known)
        classes = {class_: kinds for by_class in self.classes.values() for class_, kinds in by_class.items()}
        for class_, kinds in classes.items():
            yield from (f"{class_}: unknown kind {kind}" for kind in kinds if kind not in self.kinds)
        yield from (f"of_slots: unknown class {one}" for one in self.of_slots.values() if one not in classes)


def _family(kind: str) -> str:
    return kind.partition("_")[0]


def load_qualifiers(directory: Path) -> dict[str, Qualifiers]:
    """Return the qualifiers of every language that has a file in a directory."""
    files = {path.stem: shipped_yaml(path) for path in sorted(directory.glob("*.yaml"))}
    classes = files.pop("classes", {})
    return {
        language: Qualifiers(language=language, classes=_in_language(classes, file["kinds"]), **file)
        for language, file in files.items()
    }


def _in_language(
    classes: Mapping[str, Mapping[str, Sequence[str]]], kinds: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, list[str]]]:
    """Return the classes with those of their kinds that a language has; English has all."""
    return {
        tool: {
            class_: present for class_, names in part.items() if (present := [name for name in names if name in kinds])
        }
        for tool, part in classes.items()
    }
