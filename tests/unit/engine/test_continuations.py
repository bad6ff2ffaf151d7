"""Scores of continuations are those of plain forward passes over prompt and continuation."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest
import torch

from tests.fixtures.architectures import tiny_model, with_exact_norms
from tests.unit.engine.test_decoder import model_with_adapter
from tool_aware.engine import continuations
from tool_aware.engine.continuations import ContinuationScorer
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.packed_attention import Segments
from tool_aware.engine.pass_inputs import padded, padded_segments

BEGINNING = list(range(20, 60))
NAMES = {
    "names": [[3, 4, 5, 13], [3, 4, 6, 13], [7, 13], [8, 9, 9, 9, 9, 13]],
    "names of one token": [[7], [8]],
    "one name": [[7, 13]],
}


def prompts_of(*lengths):
    return [BEGINNING + list(range(number, number + length)) for number, length in enumerate(lengths)]


def one_by_one(model, prompts, names):
    """log p(name | prompt) from a plain forward pass over each prompt with each name."""
    with torch.no_grad():
        return [
            [_log_p(model(input_ids=torch.tensor([prompt + ids])).logits[0], prompt, ids) for ids in names]
            for prompt in prompts
        ]


def _log_p(logits, prompt, ids):
    log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return sum(log_p[place, token].item() for place, token in enumerate(ids))


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_scores_are_those_of_plain_passes(family, names):
    model = model_with_adapter(family=family)
    scorer, prompts = ContinuationScorer(PackedDecoder(model), BEGINNING, names), prompts_of(5, 1, 30, 2)
    found = scorer.scores(prompts)
    for one, expected in zip(found, one_by_one(model, prompts, names), strict=True):
        assert one == pytest.approx(expected, abs=1e-5)
    assert scorer.scores(prompts[2:3])[0] == pytest.approx(found[2], abs=1e-5)


def test_a_model_without_an_adapter_is_scored_as_well():
    base, names = with_exact_norms(tiny_model("mistral", vocab_size=1000)), NAMES["names"]
    (found,) = ContinuationScorer(PackedDecoder(base), BEGINNING, names).scores(prompts_of(6))
    assert found == pytest.approx(one_by_one(base, prompts_of(6), names)[0], abs=1e-5)


def test_long_batches_are_scored_in_parts(monkeypatch):
    model, prompts = model_with_adapter(), prompts_of(9, 50, 3, 3, 8, 20)
    scorer = ContinuationScorer(PackedDecoder(model), BEGINNING, NAMES["names"])
    whole, parts = scorer.scores(prompts), []
    monkeypatch.setattr(continuations, "MOST_TOKENS", 45)
    packed = scorer._packed
    monkeypatch.setattr(scorer, "_packed", lambda ends: parts.append(len(ends)) or packed(ends))
    for one, expected in zip(scorer.scores(prompts), whole, strict=True):
        assert one == pytest.approx(expected, abs=1e-5)
    assert parts == [1, 1, 2, 1, 1]  # with 12 tokens of names behind each; one that is longer goes alone


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_recorded_sizes_let_each_token_see_what_it_should(seed, names):
    draw = random.Random(seed)
    scorer = ContinuationScorer(_without_model(), BEGINNING, names)
    packed = scorer._packed([[9] * draw.randint(1, 90) for _ in range(draw.randint(1, 20))])
    sizes = scorer._sizes(packed, Segments.of(packed))
    longer = padded(packed, sizes)
    segments = padded_segments(Segments.of(longer), sizes)
    assert (len(longer.input_ids[0]), len(longer.labels)) == (sizes.tokens, sizes.labels)
    assert len(segments.prefix_columns) == sizes.prefix_tokens == segments.keys[-1]
    sees = torch.zeros(sizes.tokens, sizes.tokens, dtype=torch.bool)
    for first, end in itertools.pairwise(segments.own):
        assert end - first <= segments.longest_own
        sees[first:end, first:end] = torch.ones(end - first, end - first).tril().bool()
    for (first, end), (first_key, end_key) in zip(
        itertools.pairwise(segments.queries), itertools.pairwise(segments.keys), strict=True
    ):
        sees[first:end, segments.prefix_columns[first_key:end_key]] = True
    own = packed.input_ids.shape[1]
    assert torch.equal(sees[:own, :own], packed.visible()[0, 0])
    assert not sees[:own, own:].any()


def test_batches_of_random_queries_have_few_sizes():
    scorer, draw = ContinuationScorer(_without_model(), BEGINNING, NAMES["names"]), random.Random(0)
    packs = [scorer._packed([[9] * draw.randint(8, 40) for _ in range(draw.randint(1, 16))]) for _ in range(400)]
    sizes = {scorer._sizes(packed, Segments.of(packed)) for packed in packs}
    assert len(sizes) <= 40


def _without_model():
    return SimpleNamespace(keys_and_values=lambda pack: [], can_record=lambda: False)
