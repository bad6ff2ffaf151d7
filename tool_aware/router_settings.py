"""The settings in the folder of an adapter or merged model that an agent needs to route with it, and nothing else."""

from __future__ import annotations

from pathlib import Path

from tool_aware.config.data_sections import ConversationSection, EvaluationSection, KeywordRouterSection, ToolSection
from tool_aware.config.sections import ModelSection, QuantizationSection, Section
from tool_aware.config.settings import Config, load_config
from tool_aware.console import UserError
from tool_aware.files import checked_as, read_as, write_json
from tool_aware.manifest import read_manifest
from tool_aware.paths import ROUTER_SETTINGS_NAME
from tool_aware.tools import Toolbox

_FIX = "name the config.yaml of the training: config=..."


class RouterSettings(Section):
    """The content of router.json: parts of the config.yaml that a model was trained with."""

    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    tools: list[ToolSection]
    conversation: ConversationSection = ConversationSection()
    no_tool: str | None = None
    keyword_router: KeywordRouterSection = KeywordRouterSection()
    max_new_tokens: int = EvaluationSection().max_new_tokens

    @classmethod
    def of(cls, config: Config) -> RouterSettings:
        """Take them from a whole config."""
        return cls(
            model=config.model,
            quantization=config.quantization,
            tools=config.tools,
            conversation=config.conversation,
            no_tool=config.evaluation.no_tool,
            keyword_router=config.evaluation.keyword_router,
            max_new_tokens=config.evaluation.max_new_tokens,
        )

    @property
    def toolbox(self) -> Toolbox:
        """Return the tools that the agent can call."""
        return Toolbox(tool.as_tool() for tool in self.tools)


def write_router_settings(folder: Path, config: Config) -> None:
    """Write router.json into the folder of an adapter or merged model."""
    write_json(folder / ROUTER_SETTINGS_NAME, RouterSettings.of(config).model_dump(mode="json"))


def read_router_settings(folder: Path, config: Path | None = None) -> RouterSettings:
    """Return the settings of a trained model: of `config` if it is given, else its own, else its run's.

    Raises UserError if there are none, or they cannot be read.
    """
    if config is not None:
        return RouterSettings.of(load_config(config))
    if not folder.is_dir():
        raise UserError("no such folder", where=str(folder), fix="name the folder that train_tool_aware.py wrote")
    path = folder / ROUTER_SETTINGS_NAME
    own = read_as(path, RouterSettings, fix=f"copy the folder again, or {_FIX}")
    if own:
        return own
    manifest = read_manifest(folder.resolve().parent) or {}
    if manifest.get("stage") != "train":
        raise UserError(f"has no {ROUTER_SETTINGS_NAME}, and no training beside it", where=str(folder), fix=_FIX)
    where = str(folder.resolve().parent)
    return RouterSettings.of(checked_as(manifest["config"], Config, where=where, fix=_FIX))
