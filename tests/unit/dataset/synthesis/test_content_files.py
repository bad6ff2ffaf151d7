"""The YAML of the content can be reviewed, and an edit of it changes the data of a seed only on purpose."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tool_aware.config.settings import Config
from tool_aware.dataset.assembly import assemble
from tool_aware.dataset.outputs import RowsFile
from tool_aware.dataset.splitting import split_rows
from tool_aware.dataset.synthesis.content import CONTENT_DIR, load_content
from tool_aware.dataset.synthesis.generator import Generator
from tool_aware.evaluation.scoring.judgement import group_of
from tool_aware.rows import SPLITS

MAX_COLUMNS = 160
FRAMES_DIR = CONTENT_DIR / "frames"
FRAME_FILES = sorted(FRAMES_DIR.rglob("*.yaml"))
FRAME_LINE = re.compile(r"""\s+(?:- |(?:- )?[a-z_]+: )(?P<value>["'].*)""")

# 60 rows a tool and 20 ambiguous ones of seed 42, with the tools of config.yaml. A change of the content (a sentence, a
# filler, a share) changes them. Where that is meant, run the last test of this file, copy the digests from its message,
# and commit them together with the content.
RECORDED_SHA256 = {
    "train": "6c70253228b6926ff3ae963c7ff73dd2394f0fc2567c347843fcc0560b26e10e",
    "val": "39c5c1d16d509e2decb21ac1cfb3b31eed3c8a7863faa5bc1076b6c8c94c600c",
    "test": "e41adbbf1fe340910fa470372bb09450bd7479c2940788886b57844e9d399a46",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(CONTENT_DIR))


def blocks_of(path: Path) -> list[dict[str, Any]]:
    return read_yaml(path.read_text(encoding="utf-8"))


def read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the C parser is ten times faster


def patterns_of(block: Mapping[str, Any]) -> Iterator[str]:
    yield from (pattern for pair in block.get("pairs", ()) for pattern in pair.values())
    said = block.get("say", ())
    for patterns in said.values() if isinstance(said, Mapping) else (said,):
        yield from map(str, patterns)


def languages_of(block: Mapping[str, Any]) -> list[str]:
    said = block.get("say", ())
    return list(said) if isinstance(said, Mapping) else [block.get("language", "en")]


@pytest.mark.parametrize("path", sorted(CONTENT_DIR.rglob("*.yaml")), ids=name_of)
def test_no_line_is_wider_than_a_review_shows(path: Path) -> None:
    too_wide = [
        number for number, line in enumerate(path.read_text("utf-8").splitlines(), 1) if len(line) > MAX_COLUMNS
    ]
    assert not too_wide, f"{name_of(path)}: lines {too_wide} have more than {MAX_COLUMNS} columns"


@pytest.mark.parametrize("path", FRAME_FILES, ids=name_of)
def test_each_frame_has_a_line_of_its_own(path: Path) -> None:
    lines = [match["value"] for line in path.read_text("utf-8").splitlines() if (match := FRAME_LINE.fullmatch(line))]
    alone = read_yaml("\n".join(f"- {line}" for line in lines))
    patterns = {pattern for block in blocks_of(path) for pattern in patterns_of(block)}
    assert {pattern for pattern in patterns if len(pattern) <= MAX_COLUMNS - 25} <= set(alone)  # longer ones are folded


@pytest.mark.parametrize("path", FRAME_FILES, ids=name_of)
def test_frame_files_are_named_by_language_tool_and_slice(path: Path, config: Config) -> None:
    """en/TOOL_SLICE.yaml and en/TOOL_SLICE_PART.yaml, en/pairs_SLICE.yaml, LANGUAGE/TOOL.yaml, many/TOOL_KIND.yaml."""
    folder = path.parent.name
    assert path.parent.parent == FRAMES_DIR
    for block in blocks_of(path):
        languages, slice_ = languages_of(block), block.get("slice", "plain")
        assert "pairs" in block or block["tool"] in config.toolbox.names
        if "pairs" in block:
            assert (folder, path.stem) == ("en", f"pairs_{slice_}")
        elif folder == "many":
            assert len(languages) > 1
            assert re.fullmatch(rf"{block['tool']}_{block.get('kind', 'plain')}(_[a-z]+)?", path.stem)
        elif folder == "en":
            assert languages == ["en"]
            assert re.fullmatch(rf"{block['tool']}_{slice_}(_[a-z_]+)?", path.stem)
        else:
            assert languages == [folder]
            assert path.stem == block["tool"]


def test_ids_are_unique_and_independent_of_the_file_a_frame_stands_in(tmp_path: Path) -> None:
    content = load_content()
    assert len({frame.id for frame in content.frames}) == len(content.frames)
    for source in CONTENT_DIR.rglob("*.yaml"):
        if not source.is_relative_to(FRAMES_DIR):
            target = tmp_path / source.relative_to(CONTENT_DIR)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    (tmp_path / "frames").mkdir()
    one_file = "\n".join(path.read_text("utf-8") for path in reversed(FRAME_FILES))
    (tmp_path / "frames/all.yaml").write_text(one_file, "utf-8")
    assert load_content(tmp_path).frames == content.frames


def test_a_frame_that_is_added_changes_no_row_of_the_others(config: Config) -> None:
    content = load_content()
    left_out = content.frames[100]
    fewer = replace(content, frames=tuple(frame for frame in content.frames if frame is not left_out))
    first, second = (
        {row.query: row for row in Generator(part, config.toolbox, seed=4).rows_for(left_out.tool, 400)}
        for part in (content, fewer)
    )
    in_both = first.keys() & second.keys()
    assert len(in_both) > 390
    assert all(first[query] == second[query] for query in in_both)


def test_the_ways_to_ask_for_a_program_are_divided_and_count_as_one_in_intervals(config: Config) -> None:
    dataset = config.dataset.model_copy(update={"synthetic_per_tool": 800, "program_factor": 1, "follow_ups": 0})
    rows = assemble(config.model_copy(update={"dataset": dataset}), load_content(), []).rows
    split = split_rows(rows, dataset.splits, dataset.seed)
    asked = {
        name: {row.metadata["program"]: row for row in part if "program" in row.metadata}
        for name, part in split.rows.items()
    }
    templates = {name: {row.metadata["template"] for row in part} for name, part in split.rows.items()}
    assert not templates["train"] & (templates["val"] | templates["test"])
    in_both = asked["train"].keys() & asked["test"].keys()
    assert len(in_both) > len(asked["test"]) / 2
    program = min(in_both)
    assert group_of(0, asked["train"][program]) == group_of(1, asked["test"][program]) == program


def test_the_data_of_a_seed_is_the_recorded_one(config: Config) -> None:
    dataset = config.dataset.model_copy(
        update={"synthetic_per_tool": 60, "ambiguous": 20, "seed": 42, "follow_ups": 0, "two_requests": 0}
    )
    small = config.model_copy(update={"dataset": dataset})
    rows = assemble(small, load_content(), []).rows
    split = split_rows(rows, dataset.splits, dataset.seed)
    texts = {name: "".join(RowsFile(split.rows[name])) for name in SPLITS}
    found = {name: hashlib.sha256(texts[name].encode()).hexdigest() for name in SPLITS}
    assert found == RECORDED_SHA256, f"the data of seed 42 changed; if that is meant, record {found}"
