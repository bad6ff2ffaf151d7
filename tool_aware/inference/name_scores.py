"""Probabilities of tools: one forward pass per prompt scores the full names of any list of tools.

The names' tokens form a trie that hangs behind the answer's `Tool:`. All its nodes go through the model together, each
seeing the prompt and its own ancestors only, so that one pass yields log p(name | prompt) for every name:

    prompt  Tool :  -+- rag - _ret - rieval - \\n
                     +- web - _ - search - \\n
                     +- ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from tool_aware.inference.generation import Batch, make_batch, plan_batches
from tool_aware.inference.prefix_cache import Prefix, PrefixCache
from tool_aware.model.base import cache_arguments

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class NameTrie:
    """The names' tokens without each name's last one, which is predicted but never fed.

    `tokens[k]` hangs below node `parents[k]` (-1: directly behind the prompt). `paths[name]` lists (node, next token)
    along the name: the node whose scores predict it, -1 being the prompt's last token.
    """

    tokens: list[int]
    parents: list[int]
    paths: dict[str, list[tuple[int, int]]]

    @classmethod
    def of(cls, names: Mapping[str, Sequence[int]]) -> NameTrie:
        """Build the trie; names are given as token ids that make no name a prefix of another."""
        trie = cls([], [], {})
        nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
        for name, ids in names.items():
            node, path = -1, []
            for position, token in enumerate(ids):
                path.append((node, token))
                if position == len(ids) - 1:
                    break
                if (node, token) not in nodes:
                    nodes[node, token] = len(trie.tokens)
                    trie.tokens.append(token)
                    trie.parents.append(node)
                node = nodes[node, token]
            trie.paths[name] = path
        return trie

    def ancestors(self, node: int) -> list[int]:
        """Return a node and everything between it and the prompt."""
        return [] if node < 0 else [*self.ancestors(self.parents[node]), node]


def score_names(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    names: Mapping[str, Sequence[int]],
    *,
    batch_size: int,
    prefix: Prefix | None = None,
) -> Iterator[list[tuple[int, dict[str, float]]]]:
    """Yield (prompt index, name -> natural log-probability), batch by batch, for every name behind every prompt.

    `prompts` end with the answer's `Tool:`; `names` are the token ids that follow it (`chat_format.tool_name_tokens`).
    `prefix` has been run through the model before; all prompts begin with it. Without it, what they share is run.
    """
    import torch

    trie = NameTrie.of(names)
    prefix = Prefix.shared_by(model, prompts) if prefix is None else prefix
    batches = plan_batches([len(prompt) for prompt in prompts], batch_size)
    rows, longest = len(batches[0]), max(map(len, prompts))
    cache = prefix.cache.expanded(rows, longest + len(trie.tokens))
    for members in batches:
        batch = make_batch(prompts, members, rows, len(prefix), model.device)
        with torch.inference_mode():
            scores = _log_probabilities(_forward(model, cache, batch, trie), trie)
        yield [(row, dict(zip(trie.paths, values, strict=True))) for row, values in zip(members, scores, strict=False)]


def _forward(model: PreTrainedModel, cache: PrefixCache, batch: Batch, trie: NameTrie) -> torch.Tensor:
    """Run tails and trie together; return the scores behind each tail and node, (rows, 1 + nodes, vocabulary)."""
    import torch

    device, rows, nodes = batch.input_ids.device, len(batch.input_ids), len(trie.tokens)
    seen = batch.prefix + batch.tail
    depth = torch.tensor([len(trie.ancestors(node)) for node in range(nodes)], dtype=torch.long, device=device)
    mask = torch.zeros(rows, 1, batch.tail + nodes, seen + nodes, dtype=torch.bool, device=device)
    mask[:, :, : batch.tail, :seen] = batch.mask()
    mask[:, 0, batch.tail :, : batch.prefix] = True
    mask[:, 0, batch.tail :, batch.prefix : seen] = batch.is_real[:, None, :]
    for node in range(nodes):
        mask[:, 0, batch.tail + node, [seen + ancestor for ancestor in trie.ancestors(node)]] = True
    tokens = torch.tensor(trie.tokens, dtype=torch.long, device=device).expand(rows, -1)
    cache.columns, cache.visible = torch.arange(batch.prefix, seen + nodes, device=device), seen + nodes
    return model(
        input_ids=torch.cat([batch.input_ids, tokens], 1),
        attention_mask=mask,
        position_ids=torch.cat([batch.position_ids, batch.position_ids[:, -1:] + depth], 1),
        **cache_arguments(model, cache),
        logits_to_keep=1 + nodes,
    ).logits


def _log_probabilities(logits: torch.Tensor, trie: NameTrie) -> list[list[float]]:
    """Sum the log-probabilities along each name's path, shape (rows, names)."""
    log_p = logits.float().log_softmax(-1)
    columns = [
        reduce(add, (log_p[:, node + 1, token] for node, token in path))  # node -1, the prompt's end, is column 0
        for path in trie.paths.values()
    ]
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def probabilities(log_scores: Mapping[str, float], *, temperature: float = 1.0) -> dict[str, float]:
    """Turn log-scores into probabilities that sum to 1 over the tools: softmax(score / temperature)."""
    peak = max(log_scores.values())
    weights = {name: math.exp((score - peak) / temperature) for name, score in log_scores.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def cheapest(p: Mapping[str, float], costs: Mapping[str, Mapping[str, float]], abstain: float) -> str | None:
    """Return the tool of least expected cost; None where abstaining costs less.

    `costs` is right tool -> chosen tool -> cost, `p` the tools' probabilities.
    """
    expected = {chosen: sum(p[right] * costs[right][chosen] for right in p) for chosen in p}
    best = min(expected, key=expected.__getitem__)
    return best if expected[best] <= abstain else None
