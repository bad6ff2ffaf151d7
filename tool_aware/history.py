"""The earlier turns of a conversation, as many as a prompt may show; the oldest are left out first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from tool_aware.batch_encoding import encode_examples
from tool_aware.chat_format import EncodedExample, encode_example
from tool_aware.config.data_sections import ConversationSection
from tool_aware.prompt import Turn, with_history
from tool_aware.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_A_CALL = 1024  # of the tokenizer, which returns more than ids
_TOKENS_PER_BYTE = 0.29  # of UTF-8: Mistral's tokenizer needs 0.22 for English, 0.3 for Polish or Japanese


def shown_turns(history: Sequence[Turn], limits: ConversationSection) -> tuple[Turn, ...]:
    """Return the newest turns that `limits` allows, the newest last.

    Tokens are estimated from bytes, so that rows are the same whatever tokenizer is at hand.
    """
    newest_first = list(reversed(history))[: limits.max_turns]
    tokens = itertools.accumulate(math.ceil(_TOKENS_PER_BYTE * len(turn.as_shown().encode())) for turn in newest_first)
    kept = [turn for turn, total in zip(newest_first, tokens, strict=True) if total <= limits.max_tokens]
    return tuple(reversed(kept))


def history_in_words(rows: Iterable[Row]) -> str:
    """Return how many rows show earlier turns, and how many of these; empty if none does."""
    turns = [len(history) for row in rows if (history := row.history)]
    if not turns:
        return ""
    return f"{len(turns)} rows show earlier turns of their conversation: median {median(turns):g}, most {max(turns)}"


def fit_histories(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], limit: int, *, shared: str = ""
) -> list[tuple[Row, EncodedExample, int]]:
    """Do as `fit_history` for many rows, in few calls of the tokenizer; what begins with `shared` is cut in it."""
    encoded: dict[int, EncodedExample] = {}
    for begins in (True, False):
        numbers = [number for number, row in enumerate(rows) if row.instruction.startswith(shared) == begins]
        for start in range(0, len(numbers), _ROWS_A_CALL):
            part = numbers[start : start + _ROWS_A_CALL]
            pairs = [(rows[number].instruction, rows[number].response) for number in part]
            examples = encode_examples(tokenizer, pairs, shared=shared if begins else "")
            encoded.update(zip(part, examples, strict=True))
    return [
        fit_history(tokenizer, row, limit)
        if row.history and len(encoded[number]) > limit
        else (row, encoded[number], 0)
        for number, row in enumerate(rows)
    ]


def fit_history(tokenizer: PreTrainedTokenizerBase, row: Row, limit: int) -> tuple[Row, EncodedExample, int]:
    """Drop a row's oldest turns until it has at most `limit` tokens with its answer.

    Returns the row, its tokens, and how many turns were dropped: none of a row that is too long without any.
    """
    example = encode_example(tokenizer, row.instruction, row.response)
    history = row.history if len(example) > limit else ()
    for dropped in range(1, len(history) + 1):
        shorter = replace(row, instruction=with_history(row.instruction, history[dropped:]))
        fitted = encode_example(tokenizer, shorter.instruction, shorter.response)
        if len(fitted) <= limit:
            return shorter, fitted, dropped
    return row, example, 0
