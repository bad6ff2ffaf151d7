"""The toy's tokenizer: a small part of Mistral's vocabulary, no other ids for the texts that it was chosen for."""

from __future__ import annotations

import pytest

from tool_aware.chat_format import encode_example
from tool_aware.demo.toy_model import save_small_tokenizer, vocabulary_file
from tool_aware.demo.toy_vocabulary import merged_from, needed_pieces, save_part
from tool_aware.tokenizer import build_tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory, toy_rows):
    """The tokenizer for the toy rows, read back as the stages read it."""
    folder = tmp_path_factory.mktemp("small")
    save_small_tokenizer(folder, toy_rows)
    return load_tokenizer(str(folder))


def pieces_of(tokenizer, row):
    return tokenizer.convert_ids_to_tokens(encode_example(tokenizer, row.instruction, row.response).input_ids)


def test_rows_are_split_as_by_the_whole_vocabulary_in_a_tenth_of_the_pieces(small, tokenizer, toy_rows):
    assert [pieces_of(small, row) for row in toy_rows] == [pieces_of(tokenizer, row) for row in toy_rows]
    assert len(small) < len(tokenizer) / 10
    assert (small.bos_token_id, small.eos_token_id, small.unk_token_id) == (1, 2, 0)


@pytest.mark.parametrize("text", ["zebra crossings, fünf ÄÖÜ", "日本語 🙂", "x\n\n\ty  = {'a': [1]}", "\x00\x7f ~`^"])
def test_other_texts_are_made_of_what_is_left_and_nothing_is_unknown(small, text):
    ids = small(text, add_special_tokens=False).input_ids
    assert small.unk_token_id not in ids
    assert small.decode(ids) == text


def test_a_piece_that_others_are_merged_from_is_missed_when_it_is_left_out(tokenizer, tmp_path):
    (number,) = tokenizer("policy", add_special_tokens=False).input_ids
    (piece,) = tokenizer.convert_ids_to_tokens([number])
    needed = needed_pieces(tokenizer, [number])
    between = [part for part in merged_from(piece, tokenizer.get_vocab()) if 1 < len(part) < len(piece)]
    for left_out, count in ((set(), 1), (set(between), len(piece))):
        save_part(vocabulary_file(), needed - left_out, tmp_path / "tokenizer.model")
        assert len(build_tokenizer(tmp_path / "tokenizer.model")("policy", add_special_tokens=False).input_ids) == count
