"""Differences between the tools on offer and those that an adapter was trained with, or a data set was made for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.manifest import read_manifest
from tool_aware.paths import MANIFEST_NAME
from tool_aware.schema_check import against_metaschema
from tool_aware.text import shortlist
from tool_aware.tools import Tool, Toolbox

# Of docs/benchmarks/quality.md: queries of an added fifth tool that were right, and those of the others that stayed so.
_MEASURED_ON = "SmolLM2-135M"
_EXPECTED_VARIED = (
    "with 0.7 and training.tool_weight 3, 74 % of the queries of an added fifth tool were right, and 90 % of "
    "the others; nothing is known yet of larger models"
)
_LEFT = "Its card and its thresholds stay as they are"
_EXPECTED_PLAIN = "0 % of the queries of an added tool were right"


@dataclass(frozen=True)
class ToolChange:
    """The difference between two lists of tools; all that a prompt shows counts, example queries do not."""

    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    renamed: Mapping[str, str] | None = None  # old name -> new name, of tools that are otherwise the same
    redefined: Sequence[str] = ()
    is_reordered: bool = False

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.added or self.removed or self.renamed or self.redefined or self.is_reordered)

    def __str__(self) -> str:
        """Return the difference in words."""
        parts = [f"{shortlist([*names])} {words}" for names, words in self._named() if names]
        parts += [f"{old} is {new} now" for old, new in (self.renamed or {}).items()]
        return "; ".join([*parts, *(["the order is another"] if self.is_reordered else [])])

    def _named(self) -> list[tuple[Sequence[str], str]]:
        def is_or_are(names: Sequence[str]) -> str:
            return "are" if len(names) > 1 else "is"

        return [
            (self.added, f"{is_or_are(self.added)} new"),
            (self.removed, f"{is_or_are(self.removed)} gone"),
            (self.redefined, f"{'have' if len(self.redefined) > 1 else 'has'} another description or schema"),
        ]


@dataclass(frozen=True)
class Earlier:
    """The tools that a stage worked with, as its manifest says, and their difference from the config's."""

    tools: Toolbox
    change: ToolChange
    tool_variation: float  # share of a training's steps that listed other tools; 0 where nothing is said


def earlier_tools(folder: Path, config: Config, *, stage: str) -> Earlier | None:
    """Return what the manifest in `folder` says of its tools; None if `stage` wrote none there."""
    manifest = read_manifest(folder) or {}
    if manifest.get("stage") != stage:
        return None
    settings = manifest["config"]
    listed = settings["tools"]
    try:
        tools = Toolbox(Tool(tool["name"], tool.get("description"), tool.get("parameters") or {}) for tool in listed)
        if faults := [fault for tool in tools for fault in against_metaschema(tool.parameters, tool.name)]:
            raise ValueError(faults[0])
        share = float((settings.get("training") or {}).get("tool_variation") or 0.0)
    except (AttributeError, TypeError, ValueError) as error:
        what = f"lists tools or settings of a training that cannot be read: {error}"
        fix = "move it away if it was edited; the stage that wrote it writes it again"
        raise UserError(what, where=str(folder / MANIFEST_NAME), fix=fix) from error
    return Earlier(tools, tool_change(listed, config.as_dict()["tools"]), share)


def tool_change(earlier: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> ToolChange:
    """Compare two lists of tools as a manifest holds them. A tool is renamed if one alone has the same definition."""
    old, new = _definitions(earlier), _definitions(now)
    removed, added = [name for name in old if name not in new], [name for name in new if name not in old]
    renamed = {}
    for name in removed:
        same = [other for other in added if new[other] == old[name]]
        if len(same) == 1 and [old[other] for other in removed].count(old[name]) == 1:
            renamed[name] = same[0]
    order = [renamed.get(name, name) for name in old if name in new or name in renamed]
    return ToolChange(
        added=[name for name in added if name not in renamed.values()],
        removed=[name for name in removed if name not in renamed],
        renamed=renamed,
        redefined=[name for name in new if name in old and new[name] != old[name]],
        is_reordered=order != [name for name in new if name in order],
    )


def _definitions(tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Map names to description and schema as text, because prompts show parameters in the schema's own order."""
    return {tool["name"]: json.dumps([tool.get("description"), tool.get("parameters")]) for tool in tools}


def warning_of(trained: Path, earlier: Earlier) -> str:
    """Return the warning that a model is evaluated with other tools than those of its training, and what to expect."""
    head = f"{trained} was trained with other tools ({earlier.change})"
    if earlier.tool_variation:
        return (
            f"{head}, and with varied lists of tools (training.tool_variation {earlier.tool_variation:g}), so that it "
            f"can read what is listed. Measured on {_MEASURED_ON}: {_EXPECTED_VARIED}. "
            f"{_LEFT}"
        )
    return (
        f"{head}, and without varied lists of tools (training.tool_variation is 0 or unknown): it has learnt names and "
        f"is likely wrong where they differ. Measured on {_MEASURED_ON}: {_EXPECTED_PLAIN}. Train it anew, with "
        f"training.tool_variation above 0 or with rows of these tools. {_LEFT}"
    )
