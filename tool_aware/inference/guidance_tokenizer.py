"""A tokenizer as llguidance reads it: which bytes each token stands for.

llguidance takes the vocabulary's alphabet from the decoder of tokenizer.json. What a model was trained on is decided by
the other side, the pre-tokenizer and normalizer, and the two need not agree: transformers 5.17 gives every tokenizer of
a GGUF file SentencePiece's decoder beside a byte-level pre-tokenizer. ` web` is then the letters `Ġweb` to llguidance,
and no answer passes. So the decoder is written anew here, from the side that encodes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tool_aware.console import UserError

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase

WITHOUT_CONSTRAINT = "--no-constrained evaluates without it"


def guidance_tokenizer(tokenizer: PreTrainedTokenizerBase, *, end_id: int, vocabulary: int | None) -> LLTokenizer:
    """Return `tokenizer` for llguidance; `end_id` ends an answer, `vocabulary` is the number of scores of the model.

    Raises UserError if llguidance cannot read it.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        what = f"constrained decoding needs a tokenizer of the tokenizers library, not {type(tokenizer).__name__}"
        raise UserError(what, where="model.name", fix=WITHOUT_CONSTRAINT)
    try:
        return _read(backend_text(tokenizer), end_id, vocabulary or max(tokenizer.get_vocab().values()) + 1)
    except ValueError as error:
        what = f"constrained decoding cannot read its tokenizer ({bridge_versions()}): {str(error)[:200]}"
        raise UserError(what, where="model.name", fix=WITHOUT_CONSTRAINT) from error


@functools.lru_cache(maxsize=1)  # every grammar of an evaluation is for the same one
def _read(text: str, end_id: int, vocabulary: int) -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer(text, n_vocab=vocabulary, eos_token=end_id)


def backend_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Write tokenizer.json with all tokens that were added later, and with the decoder that belongs to its encoder."""
    fields = {**json.loads(tokenizer.backend_tokenizer.to_str()), "padding": None, "truncation": None}
    decoder = matching_decoder(fields)
    return json.dumps({**fields, "decoder": decoder} if decoder else fields)


def matching_decoder(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the decoder for what pre-tokenizer and normalizer of a tokenizer.json write; None if they do not say.

    Byte-level (GPT-2, Llama 3, Qwen, SmolLM2, Tekken): each character of a token stands for a byte. SentencePiece
    (Mistral, Llama 2, Gemma): a mark, mostly U+2581, stands for a space, and `<0x0A>` for a byte.
    """
    steps = [*_steps(fields.get("normalizer")), *_steps(fields.get("pre_tokenizer"))]
    if any(step["type"] == "ByteLevel" for step in steps):
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    for step in steps:
        is_replace = step["type"] == "Replace" and step["pattern"] == {"String": " "}
        mark = step["content"] if is_replace else step["replacement"] if step["type"] == "Metaspace" else ""
        if mark:
            replace = {"type": "Replace", "pattern": {"String": mark}, "content": " "}
            return {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return None


def _steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normalizer or pre-tokenizer, those inside sequences included."""
    if part is None:
        return
    inner = part.get("normalizers") or part.get("pretokenizers") or []
    if part["type"] != "Sequence":
        yield part
    for step in inner:
        yield from _steps(step)


def bridge_versions() -> str:
    """Return the versions of the libraries between a tokenizer and a grammar, in words."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("llguidance", "transformers", "tokenizers"))
