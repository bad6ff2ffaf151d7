"""A few rows of each source and tool as the model gets them: text, tokens, and which tokens carry loss."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import IGNORE_INDEX, encode_example
from tool_aware.config.sections import ModelSection
from tool_aware.console import Fallbacks, UserError, say
from tool_aware.rows import Row
from tool_aware.stage_times import stage
from tool_aware.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_KIND = 3


@stage("loading the tokenizer")
def load_local_tokenizer(
    model: ModelSection, token: str | None, fallbacks: Fallbacks
) -> PreTrainedTokenizerBase | None:
    """Return the model's tokenizer if it is on this machine; else note that and return None. Nothing is downloaded."""
    tokenizer = _tokenizer_on_this_machine(model, token)
    if tokenizer is None:
        message = f"the tokenizer of {model.name} is not on this machine: tokens are not counted"
        say(message)
        fallbacks.extend([message])
    return tokenizer


def _tokenizer_on_this_machine(model: ModelSection, token: str | None) -> PreTrainedTokenizerBase | None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE, f"models--{model.name.replace('/', '--')}")
    if not cached.is_dir() and not Path(model.name).is_dir():
        return None  # transformers would take seconds to find out
    try:
        return load_tokenizer(model.name, revision=model.revision, token=token)
    except (UserError, OSError, ValueError, ImportError):
        return None


def preview_rows(rows: Sequence[Row], per_kind: int = ROWS_PER_KIND) -> list[Row]:
    """Return the first `per_kind` rows of each source and tool."""
    chosen: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        kind = chosen[row.metadata["source"], row.tool]
        if len(kind) < per_kind:
            kind.append(row)
    return [row for kind in sorted(chosen) for row in chosen[kind]]


def preview(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """Return one row for a person to read. Without a tokenizer the fields that need one are None."""
    shown: dict[str, Any] = {
        "source": row.metadata["source"],
        "tool": row.tool,
        "slice": row.metadata.get("slice"),
        "query": row.query,
        "response": row.response,
        "text": f"{row.instruction}\n\n{row.response}",
        "tokens": None,
        "tokens_with_loss": None,
        "loss_runs": None,
        "text_with_loss": None,
    }
    if tokenizer is None:
        return shown
    example = encode_example(tokenizer, row.instruction, row.response)
    labels = example.labels
    supervised = [label for label in labels if label != IGNORE_INDEX]
    runs = [(flag, len(list(run))) for flag, run in groupby(label != IGNORE_INDEX for label in labels)]
    return {
        **shown,
        "text": tokenizer.decode(example.input_ids, skip_special_tokens=False),
        "tokens": len(example),
        "tokens_with_loss": len(supervised),
        "loss_runs": [{"loss": flag, "tokens": length} for flag, length in runs],
        "text_with_loss": tokenizer.decode(supervised, skip_special_tokens=False),
    }
