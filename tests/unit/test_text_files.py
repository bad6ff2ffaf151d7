"""Text and JSON files as other programs write them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma

import pytest

from tool_aware.console import UserError
from tool_aware.text_files import (
    JsonLine,
    TextFormat,
    json_items,
    json_lines,
    lines_of,
    parse_json,
    read_json_text,
    read_text,
    text_format,
)

TEXT = '{"query": "Größe von Zürich?\u2028", "n": 1}\n{"query": "naïve"}\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_unicode_and_compression_are_recognised(tmp_path, encoding, pack):
    path = tmp_path / "rows"
    path.write_bytes(pack(TEXT.encode(encoding)))
    assert read_text(path) == TEXT
    assert [line.value for line in json_lines(path)] == [
        {"query": "Größe von Zürich?\u2028", "n": 1},
        {"query": "naïve"},
    ]


def test_what_is_unusual_about_a_file_can_be_said(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(TEXT.encode("utf-16")))
    assert str(text_format(path)) == "UTF-16, gzip"
    assert str(TextFormat("utf-8")) == str(TextFormat("utf-8-sig")) == ""


def test_another_encoding_is_asked_for_with_its_line_and_not_guessed(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("query\nWie groß ist Zürich?\n".encode("cp1252"))
    with pytest.raises(UserError) as caught:
        read_text(path, option="--encoding")
    message = str(caught.value)
    assert message.startswith(f"{path}:2: is not UTF-8: byte 0xdf at position 8; read as cp1252 it says 'Wie groß")
    assert "--encoding cp1252" in message
    assert "iconv" in message
    assert read_text(path, "cp1252") == "query\nWie groß ist Zürich?\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PAR1\x15\x04", "is Parquet"),
        (b"PK\x03\x04 etc", "zip archive"),
        (b"\x28\xb5\x2f\xfd rest", "unzstd"),
        (b"\n<!doctype html><title>Sign in</title>", "HTML page"),
        (gzip.compress(b"a" * 5000, mtime=0)[:-20], "cannot be unpacked"),
        (bz2.compress(b"a" * 50)[:-9], "cannot be unpacked"),
        (b"BZhello", "cannot be unpacked"),
        ("abc".encode("utf-16")[:-1], "is not UTF-16"),
    ],
)
def test_what_is_not_text_is_named(tmp_path, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_text(path)


def test_a_folder_a_missing_file_and_an_unknown_encoding_are_named(tmp_path):
    for path, encoding, words in (
        (tmp_path, None, "is a folder"),
        (tmp_path / "none", None, "not found"),
        (__file__, "klingon", "no known encoding"),
        (__file__, "base64", "no known encoding"),
    ):
        with pytest.raises(UserError, match=words):
            list(lines_of(type(tmp_path)(path), encoding))


def test_a_line_that_is_not_json_costs_that_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": }\r\n' + "[" * 100_000 + '\n{"b": 2}')
    lines = list(json_lines(path))
    assert [line.number for line in lines] == [1, 3, 4, 5]
    assert lines[1] == JsonLine(3, problem="is not JSON: Expecting value at character 7")
    assert lines[2].problem == "is not JSON: nested too deeply"
    assert (lines[0].value, lines[3].value) == ({"a": 1}, {"b": 2})


def test_an_array_and_json_lines_are_told_apart(tmp_path):
    array, lines, broken = tmp_path / "a", tmp_path / "l", tmp_path / "b"
    array.write_text('\n [{"a": 1},\n {"a": 2}]')
    lines.write_text('{"a": 1}\n{"a": 2}')
    broken.write_text('[{"a": 1},\n {"a": ]')
    assert [item.value for item in json_items(array)] == [item.value for item in json_items(lines)]
    with pytest.raises(UserError, match=r"b:2: is not JSON: Expecting value at character 8"):
        list(json_items(broken))
    with pytest.raises(UserError, match="b:2"):
        read_json_text(broken)


def test_nesting_too_deep_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


@pytest.mark.parametrize("raw", [b"a\nb\n", "\ufeffa\u00e9\n\ufeffb".encode(), b"", b"\xef\xbb\xbf"])
def test_a_text_read_at_once_is_that_of_its_lines(tmp_path, raw):
    path, digest = tmp_path / "text", hashlib.sha256()
    path.write_bytes(raw)
    assert read_text(path, digest=digest) == "".join(lines_of(path))
    assert digest.hexdigest() == hashlib.sha256(raw).hexdigest()


def test_a_text_read_at_once_names_the_line_that_is_not_utf_8(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("one\nGr\u00f6\u00dfe\n".encode() + b"caf\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8: byte 0xe9") as raised:
        read_text(path)
    assert raised.value.where == f"{path}:3"
