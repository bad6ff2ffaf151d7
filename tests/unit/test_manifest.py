"""Manifests name the inputs, versions and settings behind a result."""

from __future__ import annotations

import time

import tool_aware
from tool_aware.files import hashes_in, sha256_of
from tool_aware.manifest import read_manifest, write_manifest


def test_a_manifest_tells_where_a_result_came_from(tmp_path, config):
    (tmp_path / "in.json").write_text("in")
    (tmp_path / "out.json").write_text("out")
    write_manifest(
        tmp_path,
        stage="prepare",
        config=config.as_dict(),
        seed=42,
        started_s=time.monotonic() - 2,
        inputs={str(tmp_path / "in.json"): sha256_of(tmp_path / "in.json")},
        outputs=hashes_in(tmp_path, [tmp_path / "out.json"]),
        counts={"train": 3},
        fallbacks=["no database"],
    )
    manifest = read_manifest(tmp_path)
    assert manifest["outputs"] == {"out.json": sha256_of(tmp_path / "out.json")}
    assert manifest["seconds"] >= 2
    assert manifest["toolkit"] == tool_aware.__version__
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= manifest["versions"].keys()
    assert manifest["config"]["lora"]["r"] == 8
    assert (manifest["seed"], manifest["counts"], manifest["fallbacks"]) == (42, {"train": 3}, ["no database"])
