"""The record in an adapter's folder: what its training wrote, so that a damaged copy is found before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tool_aware.chat_format import ChatFormat
from tool_aware.console import UserError
from tool_aware.files import read_as, sha256_of, write_json
from tool_aware.manifest import read_manifest
from tool_aware.paths import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_RECORD_NAME,
    ADAPTER_WEIGHTS_NAME,
    CHAT_TEMPLATE_NAME,
    CHECKPOINT_MANIFEST_NAME,
    MANIFEST_NAME,
)
from tool_aware.text_files import read_json_text

# Settings that say where the base model lies: people correct them after moving it.
_PLACES = ("base_model_name_or_path", "revision")
_COPY_AGAIN = "copy the adapter's folder again, or take the adapter of a checkpoint"


@dataclass(frozen=True)
class AdapterRecord:
    """The content of adapter_record.json.

    The sha256 of the weights, the LoRA settings, the chat format of the prompts, the runs behind the adapter.
    """

    sha256: dict[str, str]
    chat_format: dict[str, str] = field(default_factory=dict)  # its name and sha256
    settings: dict[str, Any] = field(default_factory=dict)
    lineage: list[dict[str, Any]] = field(default_factory=list)


def write_adapter_record(
    folder: Path, lineage: Sequence[Mapping[str, Any]] = (), form: ChatFormat | None = None
) -> None:
    """Write the record of an adapter just saved into `folder`; `lineage` has its own run first, `form` wrapped it."""
    sha256 = sha256_of(folder / ADAPTER_WEIGHTS_NAME)
    own, *earlier = [dict(run) for run in lineage] or [{}]
    runs = [{**own, "sha256": sha256}, *earlier] if lineage else []
    chat_format = {"name": form.name, "sha256": form.sha256} if form else {}
    hashes, settings = {ADAPTER_WEIGHTS_NAME: sha256}, _settings(folder)
    content = {"sha256": hashes, "chat_format": chat_format, "settings": settings, "lineage": runs}
    write_json(folder / ADAPTER_RECORD_NAME, content)


def refuse_another_chat_format(adapter: Path, form: ChatFormat, base_name: str) -> None:
    """Raise UserError if an adapter was trained on prompts that were wrapped in another way than by `form`."""
    record = read_as(adapter / ADAPTER_RECORD_NAME, AdapterRecord, fix=_COPY_AGAIN)
    trained = record.chat_format if record else {}
    if trained.get("sha256", form.sha256) != form.sha256:
        raise UserError(
            f"was trained with another chat template ({trained.get('name')}) than {base_name} has now ({form.name}): "
            "its prompts would not be those it was trained on",
            where=str(adapter),
            fix=f"copy {CHAT_TEMPLATE_NAME} and the tokenizer's files from {adapter} to the base model, or train again",
        )


def check_adapter_record(adapter: Path) -> None:
    """Check an adapter's weights and settings against what its training has recorded, wherever that is kept.

    That is the folder itself, the manifest of the run beside it, and the list of a checkpoint. An adapter of another
    program has none of them. Raises UserError naming the file that has changed.
    """
    fix = f"{_COPY_AGAIN}; if only {ADAPTER_RECORD_NAME} is damaged, copy that file again"
    record = read_as(adapter / ADAPTER_RECORD_NAME, AdapterRecord, fix=fix)
    expected = {where: sha256 for where, sha256 in _recorded_hashes(adapter, record).items() if sha256}
    found = sha256_of(adapter / ADAPTER_WEIGHTS_NAME) if expected else None
    for where, sha256 in expected.items():
        if sha256 != found:
            what = f"is damaged or of another run: its sha256 is {str(found)[:12]}, and {where} says {sha256[:12]}"
            raise UserError(what, where=str(adapter / ADAPTER_WEIGHTS_NAME), fix=_COPY_AGAIN)
    if record and record.settings:
        now = _settings(adapter)
        changed = sorted(key for key in now.keys() | record.settings.keys() if now.get(key) != record.settings.get(key))
        if changed:
            lines = [f"{key} is {now.get(key)!r:.80}, was {record.settings.get(key)!r:.80}" for key in changed]
            raise UserError(
                f"is not what its training wrote: {'; '.join(lines)}",
                where=str(adapter / ADAPTER_CONFIG_NAME),
                fix=f"{_COPY_AGAIN}; for settings changed on purpose delete {ADAPTER_RECORD_NAME}",
            )


def _recorded_hashes(adapter: Path, record: AdapterRecord | None) -> dict[str, str | None]:
    """Return the sha256 of the weights by the file that says so."""
    hashes: dict[str, str | None] = {}
    if record:
        hashes[ADAPTER_RECORD_NAME] = record.sha256.get(ADAPTER_WEIGHTS_NAME, "none")
    place = adapter.resolve()
    manifest = read_manifest(place.parent) or {}
    if manifest.get("stage") == "train":
        hashes[str(place.parent / MANIFEST_NAME)] = manifest["outputs"].get(f"{place.name}/{ADAPTER_WEIGHTS_NAME}")
    checkpoint = read_as(adapter / CHECKPOINT_MANIFEST_NAME, AdapterRecord, fix=_COPY_AGAIN)
    if checkpoint:
        hashes[CHECKPOINT_MANIFEST_NAME] = checkpoint.sha256.get(ADAPTER_WEIGHTS_NAME)
    return hashes


def _settings(adapter: Path) -> dict[str, Any]:
    """Return the content of adapter_config.json that decides what the adapter computes."""
    settings = read_json_text(adapter / ADAPTER_CONFIG_NAME)
    if not isinstance(settings, dict):
        return {}
    kept = {key: value for key, value in settings.items() if key not in _PLACES}
    targets = kept.get("target_modules")
    return {**kept, "target_modules": sorted(targets)} if isinstance(targets, list) else kept
