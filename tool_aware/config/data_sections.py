"""Sections of config.yaml on the data set, the query log, the tools and the evaluation."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tool_aware.config.sections import FolderPath, Fraction, OpenFraction, PositiveInt, Section
from tool_aware.tools import TOOL_NAME, Tool


class DatasetSection(Section):
    """What the data set is made of, and how it is split."""

    dir: FolderPath = Path("data")
    seed: int = 42
    use_query_log: bool = True
    max_per_session: PositiveInt = 20
    slices: Literal["all"] | list[str] = "all"
    synthetic_per_tool: Annotated[int, Field(ge=0)] = 3000
    ambiguous: Annotated[int, Field(ge=0)] = 800
    paraphrases: Annotated[int, Field(ge=0)] = 200
    splits: list[OpenFraction] = [0.8, 0.1, 0.1]
    splits_from: FolderPath | None = None

    @field_validator("splits")
    @classmethod
    def _sums_to_one(cls, value: list[float]) -> list[float]:
        if len(value) != 3 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("must be three fractions (train, val, test) that sum to 1")
        return value


class ColumnsSection(Section):
    """Your names of the query log's columns; null where there is none."""

    query: str = "query_text"
    tool: str = "tool_used"
    success: str | None = "success"
    quality: str | None = "result_quality"
    timestamp: str | None = "timestamp"
    id: str | None = "id"
    session: str | None = "session_id"
    error: str | None = "error_message"


class FiltersSection(Section):
    """Which rows of the query log are kept."""

    only_success: bool = True
    min_result_quality: Fraction | None = 0.7
    since: datetime | None = None
    limit: PositiveInt | None = None

    @field_validator("since", mode="before")
    @classmethod
    def _read_date(cls, value: object) -> object:
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        if value is not None and not isinstance(value, datetime):  # YAML reads 2026-01-31 as a date
            return datetime.fromisoformat(str(value))
        return value


class DatabaseSection(Section):
    """Where the agent's query log lies, and how it is read."""

    schema_name: str = "public"
    table: str = "query_logs"
    columns: ColumnsSection = ColumnsSection()
    filters: FiltersSection = FiltersSection()
    sslmode: Literal["auto", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "auto"
    connect_timeout_s: PositiveInt = 5
    statement_timeout_s: PositiveInt = 60
    deadline_s: PositiveInt = 600
    fetch_size: PositiveInt = 10000


class ExampleQuery(Section):
    """A query that calls a tool, from which training rows are made."""

    query: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None
    reasoning: str | None = None


class ToolSection(Section):
    """A tool that the agent can call."""

    name: str
    description: str = Field(min_length=1)
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    examples: list[ExampleQuery] = []

    @field_validator("name")
    @classmethod
    def _is_a_tool_name(cls, value: str) -> str:
        if not TOOL_NAME.fullmatch(value):
            raise ValueError(f"must match {TOOL_NAME.pattern}")
        return value

    @field_validator("parameters")
    @classmethod
    def _is_a_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(value)
        except SchemaError as error:
            raise ValueError(f"is not a JSON Schema: {error.message}") from error
        if value.get("type") != "object":
            raise ValueError('must have "type: object"')
        return value

    @model_validator(mode="after")
    def _examples_fit(self) -> ToolSection:
        tool = self.as_tool()
        problems = [
            f"examples.{index}: {problem}"
            for index, example in enumerate(self.examples)
            if example.parameters is not None
            for problem in tool.parameter_problems(example.parameters)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def as_tool(self) -> Tool:
        """The tool without its example queries."""
        return Tool(self.name, self.description, self.parameters)


class KeywordRule(Section):
    """A tool, and the words in a query that choose it."""

    tool: str
    words: list[str]


class KeywordRouterSection(Section):
    """Rules that choose a tool by words: a baseline to compare with."""

    rules: list[KeywordRule] = []
    otherwise: str | None = None


class CostsSection(Section):
    """What a routing decision costs; a right one costs 0."""

    wrong: Annotated[float, Field(gt=0)] = 1.0
    abstain: Annotated[float, Field(ge=0)] = 0.3
    pairs: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = {}


class EvaluationSection(Section):
    """How the models are evaluated."""

    results_dir: FolderPath = Path("evaluation_results")
    batch_size: PositiveInt = 16
    max_new_tokens: PositiveInt = 256
    seed: int = 42
    no_tool: str | None = "direct_chat"
    wanted_precision: OpenFraction = 0.9
    costs: CostsSection = CostsSection()
    keyword_router: KeywordRouterSection = KeywordRouterSection()
