"""The bytes that llguidance takes each token for, of the two families of tokenizers."""

import json

import llguidance.hf
import pytest

from tests.fixtures.changed_tokenizer import SENTENCEPIECE_DECODER, changed
from tool_aware.console import UserError
from tool_aware.inference.guidance_tokenizer import guidance_tokenizer, matching_decoder

TEXT = 'Tool: web_search\nParameters: {"query": "Zürich 東京  x"}\nReasoning: é.'


def table(tokenizer, size):
    return [tokenizer.decode_bytes([token]) for token in range(size)]


def read(tokenizer):
    return guidance_tokenizer(tokenizer, end_id=tokenizer.eos_token_id, vocabulary=None)


@pytest.mark.parametrize("family", ["tokenizer", "byte_level_tokenizer"])
def test_the_table_is_the_librarys_where_the_library_is_right(family, request):
    tokenizer = request.getfixturevalue(family)
    theirs = llguidance.hf.from_tokenizer(tokenizer, eos_token=tokenizer.eos_token_id)
    assert table(read(tokenizer), len(tokenizer)) == table(theirs, len(tokenizer))


@pytest.mark.parametrize("family", ["tokenizer", "byte_level_tokenizer"])
def test_the_tokens_of_a_text_are_its_bytes(family, request):
    tokenizer = request.getfixturevalue(family)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert read(tokenizer).decode_bytes(ids).decode().removeprefix(" ") == TEXT


def test_a_byte_level_table_stays_right_under_the_decoder_of_another_family(byte_level_tokenizer):
    from_gguf = changed(byte_level_tokenizer, decoder=SENTENCEPIECE_DECODER)
    size = len(byte_level_tokenizer)
    theirs = llguidance.hf.from_tokenizer(from_gguf, eos_token=from_gguf.eos_token_id)
    assert table(theirs, size) != table(read(byte_level_tokenizer), size)  # else this module has no purpose any more
    assert table(read(from_gguf), size) == table(read(byte_level_tokenizer), size)


def test_a_decoder_that_the_library_cannot_tell_does_not_matter(tokenizer):
    mark = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    other = changed(tokenizer, decoder=mark)
    with pytest.raises(ValueError, match="decoder"):
        llguidance.hf.from_tokenizer(other, eos_token=2)
    assert table(read(other), len(tokenizer)) == table(read(tokenizer), len(tokenizer))


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "kind"),
    [
        (None, {"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}, "ByteLevel"),
        ({"type": "ByteLevel"}, None, "ByteLevel"),
        ({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, None, "Sequence"),
        (None, {"type": "Metaspace", "replacement": "▁"}, "Sequence"),
        ({"type": "NFC"}, {"type": "Whitespace"}, None),
        (None, None, None),
    ],
)
def test_the_encoder_says_which_decoder_belongs_to_it(normalizer, pre_tokenizer, kind):
    decoder = matching_decoder({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer})
    assert (decoder or {"type": None})["type"] == kind


def test_a_tokenizer_that_llguidance_cannot_read_is_one_message(byte_level_tokenizer):
    words = changed(byte_level_tokenizer, pre_tokenizer={"type": "Whitespace"}, decoder=None)
    with pytest.raises(UserError, match=r"cannot read its tokenizer \(llguidance [\d.]+, transformers .*\)") as caught:
        read(words)
    assert "--no-constrained" in caught.value.fix


def test_padding_and_truncation_do_not_reach_the_copy(byte_level_tokenizer):
    padded = changed(byte_level_tokenizer)
    padded.backend_tokenizer.enable_padding(length=40)
    padded.backend_tokenizer.enable_truncation(3)
    assert read(padded).tokenize_str(TEXT) == byte_level_tokenizer(TEXT)["input_ids"]
    assert json.loads(padded.backend_tokenizer.to_str())["truncation"]["max_length"] == 3


def test_a_tokenizer_is_read_once_until_a_token_or_the_models_size_changes(byte_level_tokenizer):
    tokenizer = changed(byte_level_tokenizer)
    size, end = len(tokenizer), tokenizer.eos_token_id
    first = read(tokenizer)
    assert guidance_tokenizer(tokenizer, end_id=end, vocabulary=size) is first
    padded = guidance_tokenizer(tokenizer, end_id=end, vocabulary=size + 64)
    tokenizer.add_tokens(["<new>"])
    assert (first.vocab_size, padded.vocab_size, read(tokenizer).vocab_size) == (size, size + 64, size + 1)
