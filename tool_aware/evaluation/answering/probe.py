"""The probe of a server: prompts that base and tuned model answer differently show which of the two it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tool_aware.console import UserError
from tool_aware.evaluation.answering.endpoint import Endpoint
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.rows import Row

PROBE_ROWS = 8
MOST_CHARACTERS = 2000  # of a reply that is compared: the time grows with their square


@dataclass(frozen=True)
class ProbeItem:
    """A prompt, and what base and tuned model answer to it."""

    instruction: str
    base: str
    tuned: str


def make_probe(rows: Mapping[int, Row], base: Sequence[Prediction], tuned: Sequence[Prediction]) -> list[ProbeItem]:
    """Pick prompts that base and tuned model answer differently; those that name another tool come first."""
    texts = {
        b.row: (b.text.strip(), t.text.strip())
        for b, t in zip(base, tuned, strict=True)
        if b.text is not None and t.text is not None
    }
    differing = [row for row, (b, t) in texts.items() if b != t]
    differing.sort(key=lambda row: _first_line(texts[row][0]) == _first_line(texts[row][1]))
    return [ProbeItem(rows[row].instruction, *texts[row]) for row in differing[:PROBE_ROWS]]


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def run_probe(endpoint: Endpoint, probe: Sequence[ProbeItem]) -> dict[str, int]:
    """Ask the probe's prompts and count whose answer each reply resembles.

    Another engine's rounding may change a word, so a reply counts for the answer with which it shares more text.

    Raises UserError if the server answers as the base model does.
    """
    from difflib import SequenceMatcher

    counts = Counter(tuned=0, base=0, neither=0)
    for item in probe:
        reply = endpoint.ask(item.instruction).text.strip()[:MOST_CHARACTERS]
        answers = (item.base[:MOST_CHARACTERS], item.tuned[:MOST_CHARACTERS])
        base, tuned = (SequenceMatcher(None, reply, text, autojunk=False).ratio() for text in answers)
        counts["neither" if base == tuned else "base" if base > tuned else "tuned"] += 1
    if counts["base"] > counts["tuned"]:
        raise UserError(
            f"answers as the base model does ({counts['base']} of {len(probe)} probe prompts, {counts['tuned']} as the "
            "fine-tuned one): the adapter is not applied",
            where=f"{endpoint.server.shown}, model {endpoint.served_name}",
            fix="vLLM: --enable-lora --lora-modules NAME=output/lora_adapters, then --served-model NAME",
        )
    return counts
