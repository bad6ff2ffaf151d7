"""The part of Mistral's vocabulary that some texts need: these are split as by the whole vocabulary.

A toy model spends nearly all of its time on its output head where that has 32,000 rows, of which its texts use a
twentieth. Other texts are split into what is left of the pieces, down to characters and bytes, so nothing is unknown.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def needed_pieces(tokenizer: PreTrainedTokenizerBase, used: Iterable[int]) -> set[str]:
    """Return the pieces with the ids `used`, those that they are merged from, and all ASCII characters."""
    vocabulary = tokenizer.get_vocab()
    pieces = tokenizer.convert_ids_to_tokens(sorted(used))
    characters = {piece for piece in vocabulary if len(piece) == 1 and piece.isascii()}
    return characters.union(*(merged_from(piece, vocabulary) for piece in pieces))


def merged_from(piece: str, vocabulary: Mapping[str, int]) -> set[str]:
    """Return the pieces that BPE has on its way from the characters of `piece` to the whole; ids are in merge order.

    Around it are other characters, but what a merge across its borders would have taken is no piece in the end.
    """
    if piece not in vocabulary:
        return set()
    parts = list(piece)
    seen = {piece, *parts}
    while len(parts) > 1:
        pairs = [(vocabulary.get(a + b), place) for place, (a, b) in enumerate(itertools.pairwise(parts))]
        found = [(number, place) for number, place in pairs if number is not None]
        if not found:  # a control token or a byte, which are not merged
            return {piece}
        _, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        seen.add(parts[place])
    return seen


def save_part(sentencepiece_model: Path, pieces: set[str], target: Path) -> None:
    """Write a SentencePiece model with these pieces only, in the same order, and its control tokens and bytes."""
    from sentencepiece import sentencepiece_model_pb2

    protocol: Any = sentencepiece_model_pb2  # its names are made when it is imported

    model = protocol.ModelProto()
    model.ParseFromString(sentencepiece_model.read_bytes())
    kept = [entry for entry in model.pieces if entry.type != entry.NORMAL or entry.piece in pieces]
    del model.pieces[:]
    model.pieces.extend(kept)
    model.trainer_spec.vocab_size = len(kept)
    target.write_bytes(model.SerializeToString())
