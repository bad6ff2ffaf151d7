"""Greedy answers on a CPU, several tokens of each row in one pass: drafts are checked, and those that are right stay.

A pass feeds a row its last token and a draft of the next ones (drafts.py). Behind each of them the model says which
token comes next: as long as that is the draft's, the next score counts as well. So every token is the one that decoding
token by token chooses, up to the rounding of the products, which differs with the number of tokens in any batch. Rows
that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tool_aware.inference.drafts import LONGEST_CONTEXT, Drafter, Phrases
from tool_aware.inference.generation import Generation

if TYPE_CHECKING:
    import torch

    from tool_aware.engine.merged_layers import LayerStore, MergedLayers
    from tool_aware.inference.constrained import GrammarProcessor
    from tool_aware.inference.prefix_cache import Prefix

MOST_DRAFTED = 11  # tokens
LEAST_ODDS = 0.3  # of a draft for a single row
_TOKENS_OF_A_PASS = 11  # a pass over one token takes as long as so many more tokens of a longer one


@dataclass
class _Row:
    """An answer that is being written."""

    number: int  # among the prompts, and of the rules
    limit: int
    unfed: list[int]  # the end of the prompt at first, then the last token
    drafter: Drafter
    fed: int = 0  # tokens of its own whose keys and values are kept
    ids: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)
    has_ended: bool = False

    @property
    def is_running(self) -> bool:
        """Return whether more tokens may follow."""
        return not self.has_ended and len(self.ids) < self.limit


class DraftingDecoder:
    """Answers to prompts that begin with a prefix; each answer is learnt as phrases for the next ones."""

    def __init__(
        self, layers: MergedLayers, prefix: Prefix, phrases: Phrases, *, eos_id: int, max_new_tokens: int
    ) -> None:
        self._layers, self._prefix, self._phrases = layers, len(prefix), phrases
        kept = zip(prefix.cache.keys, prefix.cache.values, strict=True)
        self._shared = [(keys[0], values[0]) for keys, values in kept]  # (K, P, D) each
        self._eos_id, self._max_new_tokens = eos_id, max_new_tokens

    def run(
        self, prompts: Sequence[Sequence[int]], members: list[int], rules: GrammarProcessor | None = None
    ) -> list[Generation]:
        """Answer the prompts of some indices, which are rows 0, 1, ... of the rules."""
        import torch

        with torch.inference_mode():
            rows = [
                _Row(
                    number,
                    self._max_new_tokens,
                    list(prompts[index][self._prefix :]),
                    Drafter(prompts[index][self._prefix :], self._phrases),
                )
                for number, index in enumerate(members)
            ]
            stores = self._stores(len(rows), max(len(row.unfed) for row in rows))
            running = list(rows)  # as in the stores; some of them may have ended
            while any(row.is_running for row in running):
                running, stores = _without_ended(running, stores)
                self._advance(running, stores, rules)
        for index, row in zip(members, rows, strict=True):
            beginning = list(prompts[index][-LONGEST_CONTEXT:])
            self._phrases.learn([*beginning, *row.ids], len(beginning))
        return [Generation(row.ids[:-1] if row.has_ended else row.ids, not row.has_ended) for row in rows]

    def _stores(self, rows: int, longest: int) -> list[LayerStore]:
        from tool_aware.engine.merged_layers import LayerStore

        return [LayerStore.behind(*shared, rows, longest + self._max_new_tokens) for shared in self._shared]

    def _advance(self, rows: Sequence[_Row], stores: Sequence[LayerStore], rules: GrammarProcessor | None) -> None:
        """Run one pass over the rows, and give each the tokens that it shows."""
        import torch

        from tool_aware.engine.merged_layers import Places

        fed = [self._fed(row, rows, rules) for row in rows]
        layers = self._layers
        before = self._prefix if stores[0].shared is None else 0  # columns of a store
        lengths = [before + row.fed for row in rows]
        places = Places.of([len(ids) for ids in fed], lengths, layers.groups, layers.dtype)
        ids = torch.tensor([token for row_ids in fed for token in row_ids])
        wanted: list[int] = []
        end = 0
        for row, row_ids in zip(rows, fed, strict=True):
            end += len(row_ids)
            wanted += range(end - len(row.draft) - row.is_running, end)
        scores = layers.logits(ids, self._prefix - before + places.columns, stores, places, torch.tensor(wanted))
        best, first = scores.argmax(-1).tolist(), 0
        for row in rows:
            if row.is_running:
                behind = slice(first, first + len(row.draft) + 1)
                first = behind.stop
                self._take(row, scores[behind], best[behind], rules)

    def _fed(self, row: _Row, rows: Sequence[_Row], rules: GrammarProcessor | None) -> list[int]:
        """Return what a row is fed: what was not fed yet, and a new draft."""
        if not row.is_running:
            row.draft = []
            return []
        running = sum(other.is_running for other in rows)
        least = max(LEAST_ODDS, running / (running + _TOKENS_OF_A_PASS))
        most = min(MOST_DRAFTED, row.limit - len(row.ids) - 1)
        row.draft = row.drafter.draft(rules.likely(row.number) if rules else [], most, least)
        return row.unfed + row.draft

    def _take(self, row: _Row, scores: torch.Tensor, best: Sequence[int], rules: GrammarProcessor | None) -> None:
        """Add the tokens to a row that the scores behind its last one, and behind each right one of its draft, show."""
        row.fed += len(row.unfed)
        for place, own_scores in enumerate(scores):
            token = rules.choose(row.number, own_scores, best[place]) if rules else best[place]
            row.ids.append(token)
            row.drafter.add(token)
            row.unfed = [token]
            row.has_ended = token == self._eos_id
            if not row.is_running:
                return
            if rules:
                rules.accept(row.number, token)
            if place == len(row.draft) or row.draft[place] != token:
                return
            row.fed += 1


def _without_ended(rows: list[_Row], stores: list[LayerStore]) -> tuple[list[_Row], list[LayerStore]]:
    """Return the rows and what is kept of them without those that have ended, once these are half of them."""
    places = [place for place, row in enumerate(rows) if row.is_running]
    if 2 * len(places) > len(rows):
        return rows, stores
    return [rows[place] for place in places], [store.of_rows(places) for store in stores]
