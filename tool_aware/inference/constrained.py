"""Decoding that can only produce well-formed calls: llguidance behind a transformers-style logits processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import chat_format, tool_label_tokens
from tool_aware.console import UserError
from tool_aware.inference.grammar import lark, lenient, shape_only
from tool_aware.inference.guidance_tokenizer import WITHOUT_CONSTRAINT, bridge_versions, guidance_tokenizer
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
    """The compiled grammar of the tools' answers; `processor(members)` makes a logits processor for one batch.

    `vocabulary` is the number of scores of the model; without it, that of the tokenizer. Raises UserError if llguidance
    cannot read the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Toolbox, *, vocabulary: int | None = None) -> None:
        from llguidance import LLMatcher, LLTokenizer

        form = chat_format(tokenizer)
        self._end_id = form.end_id
        self._tokenizer = guidance_tokenizer(tokenizer, end_id=form.end_id, vocabulary=vocabulary)
        label = self.text_of(tool_label_tokens(tokenizer))  # ` Tool:` where tokens begin with a space, as `▁Tool`
        space = label[: len(label) - len(label.lstrip())]
        schemas = readable_schemas(tools).schemas
        spelt = lark(tools, begins_with=space, ends_with=form.tail, schemas=schemas)
        self._start = LLMatcher(self._tokenizer, spelt, log_level=0)
        self._bytewise = LLMatcher(LLTokenizer("byte"), lark(tools, begins_with="", schemas=schemas), log_level=0)
        for matcher in (self._start, self._bytewise):
            if matcher.is_error():  # readable_schemas has compiled them
                raise ValueError(f"llguidance refuses the tools' schemas: {matcher.get_error()}")

    def processor(self, members: Sequence[int], begun: Mapping[int, Sequence[int]] | None = None) -> GrammarProcessor:
        """Start the answers to the prompts of some indices; `begun` are tokens that are there already, by index.

        Raises ValueError for tokens with which no answer begins.
        """
        matchers = []
        for member in members:
            matcher = self._start.deep_copy()
            ids = list((begun or {}).get(member, ()))
            if ids and not matcher.consume_tokens(ids):
                raise ValueError(f"no answer begins with {self.text_of(ids)!r}")
            matchers.append(matcher)
        return GrammarProcessor(matchers, self._end_id)

    def accepted(self, ids: Sequence[int]) -> int:
        """Return how many of an answer's tokens decoding could choose, one after the other; the last one is its end."""
        matcher = self._start.deep_copy()
        for position, token in enumerate(ids):
            allowed = matcher.compute_bitmask()
            if not allowed[token // 8] >> (token % 8) & 1 or not matcher.consume_token(token):
                return position
        return len(ids)

    def has(self, text: str) -> bool:
        """Return whether an answer is in the language, whatever its tokens: it is read byte by byte."""
        matcher = self._bytewise.deep_copy()
        return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()

    def text_of(self, ids: Sequence[int]) -> str:
        """Return what llguidance takes tokens for."""
        return self._tokenizer.decode_str(list(ids))


class GrammarProcessor:
    """Set the score of every token that the grammar forbids to -inf.

    Called with the tokens so far (rows, step) and the scores (rows, vocabulary), as transformers' logits processors
    are. Rows after those of the matchers, and every row after its end, are left alone. Or asked row by row: `choose` a
    token, and `accept` it unless it is the last one.
    """

    def __init__(self, matchers: list[LLMatcher], end_id: int) -> None:
        import llguidance

        self._matchers, self._end_id = matchers, end_id
        self._has_ended = [False] * len(matchers)
        self._executor = llguidance.LLExecutor()

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with forbidden tokens at -inf.

        Raises UserError if llguidance refuses a token that it allowed, or cannot say which it allows: no later token of
        that row would be held to the grammar.
        """
        import torch
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        if tokens.shape[1]:
            self._advance(tokens[:, -1].tolist())
        mask = allocate_token_bitmask(*scores.shape)  # (rows, vocabulary / 32), all allowed
        running = [(matcher, row) for row, matcher in enumerate(self._matchers) if not self._has_ended[row]]
        if running:
            fill_next_token_bitmask_par(self._executor, running, mask)
        for matcher, _ in running:
            if matcher.is_error():
                raise _broken(matcher)
        return _restricted(scores, torch.from_numpy(mask))

    def choose(self, row: int, scores: torch.Tensor, best: int) -> int:
        """Return the best token that a row allows next, by scores (vocabulary,), of which that of `best` is highest.

        Raises UserError if llguidance cannot say which tokens it allows.
        """
        import torch
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        mask = allocate_token_bitmask(1, len(scores))
        fill_next_token_bitmask(self._matchers[row], mask)
        if self._matchers[row].is_error():
            raise _broken(self._matchers[row])
        if mask[0, best // 32] >> (best % 32) & 1:
            return best
        return int(_restricted(scores[None], torch.from_numpy(mask)).argmax())

    def accept(self, row: int, token: int) -> None:
        """Take note of a row's next token. Raises UserError if llguidance refuses it."""
        if not self._matchers[row].consume_token(token):
            raise _broken(self._matchers[row])

    def likely(self, row: int) -> list[int]:
        """Return tokens that spell what must come next in a row; the model may spell it otherwise."""
        return self._matchers[row].compute_ff_tokens()

    def _advance(self, tokens: list[int]) -> None:
        for row, (matcher, token) in enumerate(zip(self._matchers, tokens, strict=False)):
            if token == self._end_id:
                self._has_ended[row] = True
            if not self._has_ended[row] and not matcher.consume_token(token):
                raise _broken(matcher)


def _restricted(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return scores (rows, vocabulary) with -inf where the bits of `mask` (rows, vocabulary / 32) are zero."""
    import torch

    bits = torch.arange(32, dtype=torch.int32, device=scores.device)
    is_allowed = ((mask.to(scores.device)[:, :, None] >> bits) & 1).bool().flatten(1)[:, : scores.shape[1]]
    return scores.masked_fill(~is_allowed, float("-inf"))


def _broken(matcher: LLMatcher) -> UserError:
    reason = " ".join(matcher.get_error().split("<state>")[0].split())[:300]
    return UserError(
        f"constrained decoding broke off within an answer: {reason} ({bridge_versions()})",
        where="tools",
        fix=f"{WITHOUT_CONSTRAINT}; the answers so far are kept",
    )
