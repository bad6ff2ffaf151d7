"""All of config.yaml, typed, read with its `--set` overrides.

Every mistake in a config is reported at once, each with its dotted key.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from tool_aware.config.data_sections import (
    ConversationSection,
    DatabaseSection,
    DatasetSection,
    EvaluationSection,
    ToolSection,
)
from tool_aware.config.problems import explain
from tool_aware.config.sections import (
    WITHOUT_BUDGET,
    ExportSection,
    LoggingSection,
    LoraSection,
    ModelSection,
    OptimizationSection,
    QuantizationSection,
    Section,
    TrainingSection,
)
from tool_aware.config.yaml_file import apply_override, read_yaml_file
from tool_aware.console import UserError
from tool_aware.json_values import lone_surrogate
from tool_aware.tools import Toolbox

DEFAULT_CONFIG = Path("config.yaml")


def by_section(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings by section and key, given as `section.key` -> value."""
    sections: dict[str, dict[str, Any]] = {}
    for dotted, value in settings.items():
        section, _, key = dotted.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


class Config(Section):
    """All of config.yaml."""

    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    optimization: OptimizationSection = OptimizationSection()
    export: ExportSection = ExportSection()
    dataset: DatasetSection = DatasetSection()
    database: DatabaseSection = DatabaseSection()
    tools: Annotated[list[ToolSection], Field(min_length=2)]
    """What the agent can call: name, description and JSON Schema, in the order shown to the model. To add one, append
    an entry with three `examples` or more; evaluate it at once, or run all stages again to train on it."""
    conversation: ConversationSection = ConversationSection()
    evaluation: EvaluationSection = EvaluationSection()
    logging: LoggingSection = LoggingSection()

    @field_validator("tools")
    @classmethod
    def _names_differ(cls, value: list[ToolSection]) -> list[ToolSection]:
        names = [tool.name for tool in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"the same name twice: {', '.join(repeated)}")
        return value

    @model_validator(mode="after")
    def _folders_differ(self) -> Config:
        """Check that no stage writes into the folder of another: each deletes or replaces what lies in its own."""
        folders = {
            "dataset.dir": self.dataset.dir,
            "training.output_dir": self.training.output_dir,
            "evaluation.results_dir": self.evaluation.results_dir,
        }
        places = {key: os.path.abspath(folder) for key, folder in folders.items()}
        for one, other in itertools.combinations(places, 2):
            if places[one] == places[other]:
                raise ValueError(f"{one} and {other} are the same folder, {folders[one]}; give each stage its own")
        return self

    @model_validator(mode="after")
    def _judged_parameters_exist(self) -> Config:
        """Check that what is said about the judging of single parameters is about parameters that there are."""
        known = {f"{tool.name}.{name}" for tool in self.toolbox for name in tool.properties}
        unknown = sorted(self.evaluation.judged_as.keys() - known)
        if unknown:
            raise ValueError(f"evaluation.judged_as: no tool has {', '.join(unknown)}; write tool.parameter")
        return self

    def settled(self) -> Config:
        """Return the config with each `auto` of the memory plan replaced by its value without a budget."""
        values = {key: value for key, value in WITHOUT_BUDGET.items() if getattr(self.optimization, key) == "auto"}
        return self.model_copy(update={"optimization": self.optimization.model_copy(update=values)})

    def with_settings(self, settings: Mapping[str, Any]) -> Config:
        """Return the config with other values for some settings, unchecked; each key is `section.key`."""
        sections = by_section(settings).items()
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=values) for name, values in sections}
        )

    @property
    def toolbox(self) -> Toolbox:
        """Return the tools that the agent can call."""
        return Toolbox(tool.as_tool() for tool in self.tools)

    @property
    def synthetic_by_tool(self) -> dict[str, int]:
        """Return how many synthetic rows are wanted of each tool, by its name."""
        rows, factor = self.dataset.synthetic_per_tool, self.dataset.program_factor
        return {tool.name: rows * (factor if tool.takes_program else 1) for tool in self.toolbox}

    @property
    def synthetic_kinds(self) -> dict[str, int]:
        """Return how many synthetic rows are wanted of each kind that is counted apart from the tools', by its name."""
        dataset = self.dataset
        return {
            "ambiguous": dataset.ambiguous,
            "follow-up": dataset.follow_ups if self.conversation.max_turns else 0,
            "two requests": dataset.two_requests,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as manifests hold them. No key is a secret."""
        return self.model_dump(mode="json")


def load_config(path: Path | str = DEFAULT_CONFIG, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `section.key=value` overrides.

    Raises UserError naming every unknown key, duplicate key, missing key and wrong value, each with its dotted path.
    """
    path = Path(path)
    values = read_yaml_file(path)
    for override in overrides:
        apply_override(values, override)
    if found := lone_surrogate(values):
        raise UserError("has half a surrogate pair, which is no character", where=f"{path}: {found}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = list(explain(error, Config))
        raise UserError(
            "\n".join([f"{len(problems)} problem{'s' * (len(problems) > 1)} in {path}:", *problems])
        ) from None
