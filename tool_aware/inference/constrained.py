"""Decoding that can only produce well-formed calls: llguidance behind a transformers-style logits processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import end_id, tool_label_tokens
from tool_aware.console import UserError
from tool_aware.inference.grammar import lark, lenient, shape_only
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ReadableSchemas:
    """Schemas by tool name in a form that llguidance reads, where it does not read the tool's own; and what is lost."""

    schemas: dict[str, dict[str, Any]]
    notes: list[str]


def readable_schemas(tools: Toolbox) -> ReadableSchemas:
    """Find the strictest form of each schema that llguidance can compile.

    Raises UserError for a tool that has none: then no call fits it.
    """
    if not _problem(tools, {}):
        return ReadableSchemas({}, [])
    schemas: dict[str, dict[str, Any]] = {}
    notes = []
    for tool in tools:
        alone = Toolbox([tool])
        refusal = _problem(alone, {})
        if not refusal:
            continue
        forms = (lenient(tool.parameters), shape_only(tool.parameters), lenient(shape_only(tool.parameters)))
        readable = next((form for form in forms if not _problem(alone, {tool.name: form})), None)
        if readable is None:
            raise UserError(
                f"constrained decoding cannot use its schema: {refusal}",
                where=f"tools: {tool.name}",
                fix="change the schema so that a call can fit it, or run with --no-constrained",
            )
        schemas[tool.name] = readable
        notes.append(f"constrained decoding does not hold {tool.name} to all of its schema: {refusal}")
    return ReadableSchemas(schemas, notes)


def _problem(tools: Toolbox, schemas: dict[str, dict[str, Any]]) -> str:
    """Return why llguidance refuses the tools' grammar, on one line; empty if it does not."""
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(
        LLMatcher.grammar_from_lark(lark(tools, schemas=schemas))
    )
    if not is_error:
        return ""
    reason = messages[0].partition("JSON schema:")[2].split("\n   1 |")[0] or messages[0]
    return " ".join(reason.split())[:200]


class AnswerGrammar:
    """The compiled grammar of the tools' answers; `processor(rows)` makes a logits processor for one batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Toolbox, *, vocabulary: int) -> None:
        import llguidance.hf
        from transformers import PreTrainedTokenizerFast

        self._eos_id = end_id(tokenizer)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise TypeError(f"llguidance needs a tokenizer of the tokenizers library, not {type(tokenizer).__name__}")
        label = tokenizer.convert_ids_to_tokens(tool_label_tokens(tokenizer)[:1])[0]
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=self._eos_id)
        space = " " if label.startswith("▁") else ""
        schemas = readable_schemas(tools).schemas
        self._start = llguidance.LLMatcher(
            self._tokenizer, lark(tools, begins_with=space, schemas=schemas), log_level=0
        )
        if self._start.is_error():  # readable_schemas has compiled them
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
