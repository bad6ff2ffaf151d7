"""The grammar held against reference answers before anything is decoded: what was trained must be what it allows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

from tool_aware.chat_format import encode_example
from tool_aware.console import UserError
from tool_aware.inference.constrained import AnswerGrammar
from tool_aware.inference.guidance_tokenizer import WITHOUT_CONSTRAINT, bridge_versions
from tool_aware.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_CHECKED = 64  # a tokenizer that llguidance misreads fails at the first; these also meet most tools


def check_references(
    grammar: AnswerGrammar, tokenizer: PreTrainedTokenizerBase, rows: Mapping[int, Row], *, path: str
) -> list[str]:
    """Pass the tokens of the first reference answers through the grammar, as trained, their end included.

    Returns, in words, that some answers are not in the grammar's language: their parameters break the schema or stand
    in another order. Raises UserError for an answer that is in the language, but whose tokens are refused: then the
    grammar would keep the best model from answering.
    """
    outside = []
    for index, row in islice(rows.items(), ROWS_CHECKED):
        ids = encode_example(tokenizer, row.instruction, row.response).completion
        passed = grammar.accepted(ids)
        if passed == len(ids):
            continue
        if grammar.has(row.response):
            token = tokenizer.convert_ids_to_tokens(ids[passed])
            what = (
                f"constrained decoding cannot write its reference answer, which fits the grammar: after "
                f"{grammar.text_of(ids[:passed])[-200:]!r} llguidance refuses the token {token!r} (id {ids[passed]}), "
                f"which it reads as {grammar.text_of([ids[passed]])!r} ({bridge_versions()})"
            )
            fix = f"{WITHOUT_CONSTRAINT}; with other versions of these libraries it may work"
            raise UserError(what, where=f"{path}: row {index + 1}", fix=fix)
        outside.append(index + 1)
    if not outside:
        return []
    checked = min(len(rows), ROWS_CHECKED)
    return [
        f"constrained decoding cannot write {len(outside)} of the first {checked} reference answers as they stand "
        f"(the first is row {outside[0]}): the grammar holds answers to the tools' schemas and the order in them"
    ]
