"""A tiny Mistral, built without a download: real architecture, the part of the real vocabulary that its texts need.

It is first trained on well-formed answers that name random tools, one of them more often than the others. It then
knows the format and chooses badly, as a base model does before fine-tuning. Its figures say nothing about Mistral-7B.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import IGNORE_INDEX, EncodedExample, encode_example
from tool_aware.console import Progress, UserError
from tool_aware.demo.toy_vocabulary import needed_pieces, save_part
from tool_aware.files import atomic_folder
from tool_aware.model.base import cache_arguments
from tool_aware.model.libraries import quiet_libraries
from tool_aware.rows import Row
from tool_aware.text import common_prefix_length
from tool_aware.tokenizer import build_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import MistralForCausalLM, PreTrainedTokenizerBase

VOCABULARY = 32_000  # of Mistral v0.1 and v0.2
HIDDEN_SIZE = 128
LAYERS = 2
PRETRAINING_STEPS = 300
PRETRAINING_BATCH = 16
LEARNING_RATE = 3e-3


def vocabulary_file() -> Path:
    """Return the path of Mistral's V1 SentencePiece model (32,000 pieces), which the mistral-common package ships."""
    try:
        import mistral_common
    except ImportError as error:
        raise UserError(
            "the demo needs the tokenizer that mistral-common ships", fix="pip install -r requirements-dev.txt"
        ) from error
    return Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"


def save_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Write the v0.2 tokenizer into `folder` in Hugging Face's format, and return it."""
    tokenizer = build_tokenizer(vocabulary_file())
    tokenizer.save_pretrained(folder)
    shutil.copyfile(vocabulary_file(), folder / "tokenizer.model")
    return tokenizer


def save_small_tokenizer(folder: Path, rows: Sequence[Row]) -> PreTrainedTokenizerBase:
    """Write a tokenizer with the pieces that `rows` need into `folder`, and return it; it splits them as the whole."""
    whole = build_tokenizer(vocabulary_file())
    used = {piece for row in rows for piece in encode_example(whole, row.instruction, row.response).input_ids}
    save_part(vocabulary_file(), needed_pieces(whole, used), folder / "tokenizer.model")
    tokenizer = build_tokenizer(folder / "tokenizer.model")
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_model(
    *, vocabulary: int = VOCABULARY, hidden_size: int = HIDDEN_SIZE, layers: int = LAYERS, seed: int = 0
) -> MistralForCausalLM:
    """Return a Mistral with random weights: grouped-query attention, SwiGLU, tied embeddings, float32."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    return MistralForCausalLM(MistralConfig(**settings))


def build_base_model(folder: Path, rows: Sequence[Row], *, seed: int = 0, steps: int = PRETRAINING_STEPS) -> None:
    """Write a tiny model into `folder` that answers in the right form with tools chosen at random.

    `rows` give the instructions and, shuffled among each other, the answers.
    """
    with atomic_folder(folder) as part:
        tokenizer = save_small_tokenizer(part, rows)
        model = new_model(vocabulary=len(tokenizer), seed=seed)
        _pretrain(model, tokenizer, rows, seed=seed, steps=steps)
        with quiet_libraries():
            model.save_pretrained(part)


def _pretrain(
    model: MistralForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, seed: int, steps: int
) -> None:
    """Train on (instruction of one row, answer of another), the loss on the answer.

    The common beginning of all prompts, the tools, passes through the model once a step; the rows continue from its
    cache.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import DynamicCache

    generator = random.Random(seed)
    examples = [encode_example(tokenizer, row.instruction, row.response) for row in rows]
    answers = _short_answers_by_tool(rows, examples)
    weights = _tool_weights(rows)
    shared = common_prefix_length([example.prompt for example in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    progress = Progress("building the tiny base model", steps)
    for step in range(steps):
        batch = [
            EncodedExample(example.prompt, generator.choice(answers[tool]))
            for example, tool in zip(
                generator.choices(examples, k=PRETRAINING_BATCH),
                generator.choices(list(weights), list(weights.values()), k=PRETRAINING_BATCH),
                strict=True,
            )
        ]
        cache = DynamicCache(config=model.config)
        model.model(input_ids=torch.tensor([batch[0].prompt[:shared]]), **cache_arguments(model.model, cache))
        cache.batch_repeat_interleave(len(batch))
        input_ids = _pad([example.input_ids[shared:] for example in batch], 0)
        labels = _pad([example.labels[shared:] for example in batch], IGNORE_INDEX)
        states = model.model(input_ids=input_ids, **cache_arguments(model.model, cache)).last_hidden_state
        is_label = labels[:, 1:] != IGNORE_INDEX  # (B, T - 1): the token before a label predicts it
        loss = cross_entropy(model.lm_head(states[:, :-1][is_label]), labels[:, 1:][is_label])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.update(step + 1, f"loss {loss.item():.3f}")
    progress.close()


def _tool_weights(rows: Sequence[Row]) -> dict[str, int]:
    """Return how often each tool is drawn: one twice as often as each other, that whose share is nearest to chance.

    With equal weights the base would still prefer some tool for each kind of query, right or wrong by luck.
    """
    shares = {tool: count / len(rows) for tool, count in Counter(row.tool for row in rows).items()}
    favourite = min(shares, key=lambda tool: abs(shares[tool] - 1 / len(shares)))
    return {tool: 2 if tool == favourite else 1 for tool in shares}


def _short_answers_by_tool(rows: Sequence[Row], examples: Sequence[EncodedExample]) -> dict[str, list[list[int]]]:
    """Return the ids of the shorter half of each tool's answers."""
    answers: dict[str, list[list[int]]] = {}
    for row, example in sorted(zip(rows, examples, strict=True), key=lambda pair: len(pair[0].response)):
        answers.setdefault(row.tool, []).append(example.completion)
    return {tool: ids[: max(1, len(ids) // 2)] for tool, ids in answers.items()}


def _pad(sequences: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Stack sequences of token ids, padded on the right: (B, T) int64."""
    import torch

    length = max(map(len, sequences))
    return torch.tensor([[*ids, *[fill] * (length - len(ids))] for ids in sequences])
