"""Decoding that can only produce well-formed calls: llguidance behind a transformers-style logits processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tool_aware.inference.grammar import lark
from tool_aware.prompt import tool_label_tokens
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher
    from transformers import PreTrainedTokenizerBase


class AnswerGrammar:
    """The compiled grammar of the tools' answers; `processor(rows)` makes a logits processor for one batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Toolbox, *, vocabulary: int) -> None:
        import llguidance.hf
        from transformers import PreTrainedTokenizerFast

        self._eos_id = tokenizer.eos_token_id
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise TypeError(f"llguidance needs a tokenizer of the tokenizers library, not {type(tokenizer).__name__}")
        label = tokenizer.convert_ids_to_tokens(tool_label_tokens(tokenizer)[:1])[0]
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=self._eos_id)
        self._start = llguidance.LLMatcher(
            self._tokenizer, lark(tools, begins_with=" " if label.startswith("▁") else ""), log_level=0
        )
        if self._start.is_error():  # the schemas were checked when the config was read
            raise ValueError(f"llguidance refuses the tools' schemas: {self._start.get_error()}")

    def processor(self, rows: int) -> GrammarProcessor:
        """Start `rows` answers."""
        return GrammarProcessor([self._start.deep_copy() for _ in range(rows)], self._eos_id)


class GrammarProcessor:
    """Set the score of every token that the grammar forbids to -inf.

    Called with the tokens so far (rows, step) and the scores (rows, vocabulary), as transformers' logits processors
    are. After EOS a row is left alone.
    """

    def __init__(self, matchers: list[LLMatcher], eos_id: int) -> None:
        import llguidance

        self._matchers, self._eos_id = matchers, eos_id
        self._has_ended = [False] * len(matchers)
        self._executor = llguidance.LLExecutor()

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with forbidden tokens at -inf."""
        import torch
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        if tokens.shape[1]:
            self._advance(tokens[:, -1].tolist())
        mask = allocate_token_bitmask(len(self._matchers), scores.shape[1])  # (rows, vocabulary / 32), all allowed
        running = [(matcher, row) for row, matcher in enumerate(self._matchers) if not self._has_ended[row]]
        if running:
            fill_next_token_bitmask_par(self._executor, running, mask)
        words = torch.from_numpy(mask).to(scores.device)
        bits = torch.arange(32, dtype=torch.int32, device=scores.device)
        is_allowed = ((words[:, :, None] >> bits) & 1).bool().flatten(1)[:, : scores.shape[1]]
        return scores.masked_fill(~is_allowed, float("-inf"))

    def _advance(self, tokens: list[int]) -> None:
        for row, token in enumerate(tokens):
            if token == self._eos_id:
                self._has_ended[row] = True
            if not self._has_ended[row]:
                self._matchers[row].consume_token(token)
