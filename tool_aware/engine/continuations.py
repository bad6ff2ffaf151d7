"""Scores of a few continuations behind each of many prompts that all begin alike: how likely the model takes them for.

The keys and values of what all prompts begin with are computed once. Of a batch, only the prompts' own ends go through
the model, each once, with all continuations behind it, as one pack without padding:

    kept     what all prompts begin with
    pack     [ end of prompt 1 | continuation a | continuation b | end of prompt 2 | continuation a | ... ]

An end and its continuations are a group of the pack: the end is the group's prefix (packing.py). On a GPU the passes
over small packs, for which it would wait for Python, are recorded (recorded_passes.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.packed_attention import Segments
from tool_aware.engine.packing import PREFIX, Pack
from tool_aware.engine.pass_inputs import PackSizes, PassInputs
from tool_aware.engine.recorded_passes import RecordedPasses, RecordingError
from tool_aware.engine.sizes import FLASH_ROUNDING, rounded_up, size_step

MOST_TOKENS = 4096  # of one pass; its widest buffers take 0.5 GiB of a 7B
_MOST_RECORDED_TOKENS = 1024  # a fast GPU needs longer for more than Python needs to launch
_WARM_PROMPTS, _WARM_ENDS = (1, 4, 8), (16, 40)


class ContinuationScorer:
    """The log-probabilities of `continuations` behind prompts that begin with `beginning`; both are token ids.

    Each continuation has a token at least. The model's rotations must not look at the longest position.
    """

    def __init__(
        self, decoder: PackedDecoder, beginning: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> None:
        self.beginning, self._continuations = list(beginning), [list(ids) for ids in continuations]
        self._behind = sum(len(ids) > 1 for ids in continuations)  # those of which tokens are fed
        self._decoder = decoder
        self._before = decoder.keys_and_values(_only_prefix(self.beginning))
        self._recorded = RecordedPasses(self._pass, decoder.device, self._sizes) if decoder.can_record() else None

    def scores(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the natural log-probability of each continuation behind each prompt.

        Each prompt begins with `beginning` and has at least one more token.
        """
        ends = [list(prompt[len(self.beginning) :]) for prompt in prompts]
        return [scores for part in self._parts(ends) for scores in self._scores_of(part)]

    def warm_up(self) -> None:
        """Compile the kernels and record the passes that single prompts and a few at once are likely to need."""
        if self._recorded is None:
            return
        for prompts, end in itertools.product(_WARM_PROMPTS, _WARM_ENDS):
            for _ in range(2):  # the second one is recorded
                self.scores([[*self.beginning, *self.beginning[:1] * end]] * prompts)

    def _parts(self, ends: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        """Cut a batch where a pass would have more than MOST_TOKENS."""
        fed = sum(len(ids) - 1 for ids in self._continuations)
        part: list[list[int]] = []
        for end in ends:
            if part and sum(len(one) + fed for one in [*part, end]) > MOST_TOKENS:
                yield part
                part = []
            part.append(end)
        yield part

    def _scores_of(self, ends: Sequence[list[int]]) -> list[list[float]]:
        losses = iter(self._losses(self._packed(ends)).tolist())
        return [[-sum(next(losses) for _ in ids) for ids in self._continuations] for _ in ends]

    def _losses(self, pack: Pack) -> torch.Tensor:
        if self._recorded and pack.input_ids.shape[1] <= _MOST_RECORDED_TOKENS:
            try:
                return self._recorded(pack, 1.0)[: len(pack.labels)]
            except RecordingError:
                self._recorded = None
                self._decoder.stop_recording()
        return self._pass(self._decoder.inputs_of(pack), 1.0)

    def _pass(self, inputs: PassInputs, _: torch.Tensor | float) -> torch.Tensor:
        return self._decoder.losses_behind(self._before, inputs)

    def _packed(self, ends: Sequence[list[int]]) -> Pack:
        """Lay out ends with their continuations; labels are in the order of ends, continuations and tokens."""
        ids: list[int] = []
        positions: list[int] = []
        groups: list[int] = []
        examples: list[int] = []
        columns: list[int] = []
        labels: list[int] = []
        for group, end in enumerate(ends):
            first = len(self.beginning)
            ids += end
            positions += range(first, first + len(end))
            examples += [PREFIX if self._behind else 0] * len(end)
            last = len(ids) - 1
            for number, continuation in enumerate(self._continuations):
                fed = continuation[:-1]  # the last token is predicted, not fed
                columns += [last, *range(len(ids), len(ids) + len(fed))]
                labels += continuation
                ids += fed
                positions += range(first + len(end), first + len(end) + len(fed))
                examples += [number] * len(fed)
            groups += [group] * (len(ids) - len(groups))
        return _pack(ids, positions, groups, examples, columns, labels)

    def _sizes(self, pack: Pack, segments: Segments) -> PackSizes:
        """Return sizes that batches of about as many prompts have in common."""
        tokens, prefix_tokens = pack.input_ids.shape[1], len(segments.prefix_columns)
        prompts = 1 << int(pack.group_ids[0, -1]).bit_length()  # the next power of two
        step = size_step(tokens, parts=4, least=64)
        whole = rounded_up(tokens + 1, step)  # padding has one token at least
        return PackSizes(
            whole,
            prompts * sum(map(len, self._continuations)),
            prompts * (1 + self._behind) + 2,  # padding, and the end of the last one
            prompts * 2 + 2,
            rounded_up(prefix_tokens, step),
            rounded_up(max(segments.longest_own, whole - tokens), FLASH_ROUNDING),
        )


def _only_prefix(ids: Sequence[int]) -> Pack:
    return _pack(ids, range(len(ids)), [0] * len(ids), [0] * len(ids), [], [])


def _pack(  # noqa: PLR0917
    ids: Sequence[int],
    positions: Sequence[int],
    groups: Sequence[int],
    examples: Sequence[int],
    columns: Sequence[int],
    labels: Sequence[int],
) -> Pack:
    def tensor(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int64)

    return Pack(
        *(tensor(ids)[None], tensor(positions)[None], tensor(groups)[None], tensor(examples)[None]),
        *(tensor([0] * len(labels)), tensor(columns), tensor(labels), torch.ones(len(labels))),
        order=(),
    )
