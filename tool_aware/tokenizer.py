"""The tokenizer of a model, loaded so that its ids are those its model was trained with, and checked first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import MISTRAL_TEMPLATE, chat_format
from tool_aware.console import UserError
from tool_aware.library_imports import import_transformers
from tool_aware.paths import MODEL_CONFIG_NAME, TOKENIZER_CONFIG_NAME
from tool_aware.text_files import read_json_text, text_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST_VOCABULARY = 0.5  # of the rows of the embedding: they are padded by a few hundred, not doubled
_MISTRAL_PIECES = 32_000  # of the vocabulary of v0.1 and v0.2, whose folders need no chat template
# Templates that write today's date (Llama 3.2) write this one in training, in evaluation and in what is exported, so
# that the prompt stays the trained one. It is the date that Llama's own template has where there is no clock.
_FIXED_DATE = date(2024, 7, 26)
_NOW = re.compile(r"""strftime_now\(\s*(["'])(?P<form>[^"']*)\1\s*\)""")


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, token: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a chat model, with its chat template; of a Mistral, so that ids equal mistral-common's.

    If the model ships `tokenizer.model`, the order of merges is taken from that file's piece scores. transformers 5
    orders them by id when it converts the file itself, which splits runs of spaces differently.

    Raises UserError if there is no tokenizer, it cannot be read, it has no chat template that `chat_format` can use,
    or it has more tokens than the model.
    """
    import_transformers()
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    where = f"model.name: {name_or_path}"
    if Path(name_or_path).is_dir():
        _check_tokenizer_files(Path(name_or_path), where)

    def local(name: str) -> Path | None:
        path = cached_file(
            name_or_path, name, revision=revision, token=token, _raise_exceptions_for_missing_entries=False
        )
        return Path(path) if path else None

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, token=token, trust_remote_code=False
        )
        model_file = local("tokenizer.model")
        if model_file and len(tokenizer.get_added_vocab()) <= 3:  # v0.1 and v0.2; later ones add control tokens
            tokenizer = build_tokenizer(model_file, chat_template=tokenizer.chat_template)
    except (ImportError, UserError):
        raise
    except Exception as error:  # of tokenizers, sentencepiece, transformers and the hub: each has its own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        what = f"its tokenizer cannot be read: {reason[:300]}"
        raise UserError(what, where=where, fix="copy or download the tokenizer's files again") from error
    settings = _model_settings(local(MODEL_CONFIG_NAME))
    _check_vocabulary(tokenizer, settings, where)
    tokenizer.chat_template = _with_fixed_date(tokenizer.chat_template or _mistral_template(tokenizer, settings))
    if tokenizer.unk_token_id is not None:
        tokenizer.pad_token_id = tokenizer.unk_token_id  # never EOS: a model that sees EOS masked away does not stop
    tokenizer.padding_side = "left"  # generation continues from the last column
    try:
        chat_format(tokenizer)
    except UserError as error:
        raise UserError(error.what, where=where, fix=error.fix) from error.__cause__
    return tokenizer


def _mistral_template(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> str | None:
    """Return the template of Mistral's models if this is one of them; their folders do not all have it."""
    is_mistral = settings.get("model_type", "mistral") in ("mistral", "ministral3", "mistral3")
    return MISTRAL_TEMPLATE if is_mistral and _has_mistral_marks(tokenizer) else None


def _has_mistral_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    return "[INST]" in tokenizer.get_added_vocab() or tokenizer.vocab_size == _MISTRAL_PIECES


def _with_fixed_date(template: Any) -> Any:
    """Return a chat template that writes the same date every day; several templates by name are left as they are."""
    if not isinstance(template, str):
        return template
    return _NOW.sub(lambda found: repr(_FIXED_DATE.strftime(found["form"])), template)


def _check_tokenizer_files(folder: Path, where: str) -> None:
    """Refuse a folder without a tokenizer, and files that are none: LFS pointers, HTML pages, JSON cut off."""
    found = [folder / name for name in ("tokenizer.json", "tokenizer.model")]
    if not any(path.is_file() for path in found) and (folder / "tekken.json").is_file():
        what = "the folder has only tekken.json, which mistral-common reads and transformers does not"
        fix = "copy tokenizer.json and tokenizer_config.json there as well, from the model's page or its -Instruct twin"
        raise UserError(what, where=where, fix=fix)
    if not any(path.is_file() for path in found):
        fix = "copy tokenizer.json, tokenizer_config.json and tokenizer.model there as well"
        raise UserError("the folder has no tokenizer (tokenizer.json or tokenizer.model)", where=where, fix=fix)
    for path in (*found, folder / TOKENIZER_CONFIG_NAME, folder / "special_tokens_map.json"):
        if not path.is_file():
            continue
        text_format(path)
        if path.suffix == ".json" and not isinstance(read_json_text(path), dict):
            raise UserError("is not a JSON object", where=str(path), fix="copy or download it again")


def control_tokens_in(folder: Path) -> tuple[str, ...] | None:
    """Return the control tokens of the tokenizer in a folder, without loading it; None if it has no tokenizer.json."""
    path = folder / "tokenizer.json"
    content = read_json_text(path) if path.is_file() else None
    added = content.get("added_tokens") if isinstance(content, dict) else None
    if not isinstance(added, list):
        return None
    return tuple(token["content"] for token in added if isinstance(token, dict) and token.get("special"))


def _model_settings(path: Path | None) -> Mapping[str, Any]:
    """Return the content of config.json, of the language part if the model has several; nothing if there is none."""
    settings = read_json_text(path) if path else None
    if not isinstance(settings, dict):
        return {}
    part = settings.get("text_config")
    return {**settings, **part} if isinstance(part, dict) else settings


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], where: str) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for. Padded embeddings have rows to spare."""
    rows = settings.get("vocab_size")
    if isinstance(rows, int) and len(tokenizer) > rows:
        raise UserError(
            f"its tokenizer has {len(tokenizer):,} tokens, but the model has embeddings for {rows:,}",
            where=where,
            fix="use the tokenizer that came with the model",
        )
    if isinstance(rows, int) and len(tokenizer) < rows * _LEAST_VOCABULARY:
        what = f"its tokenizer has {len(tokenizer):,} tokens and the model embeddings for {rows:,}"
        raise UserError(f"{what}: it belongs to another model", where=where, fix="use the tokenizer that came with it")


def build_tokenizer(sentencepiece_model: Path, *, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Build Mistral's v0.1/v0.2 tokenizer from `tokenizer.model` (SentencePiece BPE, 32,000 pieces)."""
    import sentencepiece
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    ids = range(pieces.get_piece_size())
    vocabulary = {pieces.id_to_piece(i): i for i in ids}
    is_mergeable = [not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i)) for i in ids]
    scores = {pieces.id_to_piece(i): pieces.get_score(i) for i in ids if is_mergeable[i]}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, scores))
    tokenizer.chat_template = chat_template or MISTRAL_TEMPLATE
    return tokenizer
