"""Sections of config.yaml on the data set, the query log, the tools and the evaluation.

The text under a field is the comment above its key in config.yaml.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tool_aware.config.sections import Count, FolderPath, OpenFraction, PositiveInt, Section, Seed
from tool_aware.tool_schema import schema_problems
from tool_aware.tools import TOOL_NAME, Tool


class DatasetSection(Section):
    """Sources, size and splits of the data set."""

    dir: FolderPath = Path("data")
    """train.json, val.json, test.json and sample_raw.json are written here."""
    seed: Seed = 42
    """Seed of synthesis and splits."""
    use_query_log: bool = True
    """Read database.table. If no POSTGRES_* variable is set and no server answers on this machine, the data set is made
    by synthesis alone."""
    max_per_session: PositiveInt = 20
    """Rows kept of one logged session, >= 1, so that one busy user does not dominate."""
    slices: Literal["all"] | list[str] = "all"
    """Kinds of synthetic queries: all, or a list such as [plain, terse]; tool_aware/dataset/synthesis/content/mix.yaml
    names them. Ambiguous rows, follow-ups and two requests are counted separately."""
    synthetic_per_tool: Count = 3000
    """Synthetic rows per tool, >= 0; chosen by a learning curve (docs/benchmarks/dataset.md). 20 with `ambiguous: 5`,
    `follow_ups: 0` and `two_requests: 0` gives the ~100 rows of a first quick try."""
    program_factor: PositiveInt = 3
    """Times as many of these rows, >= 1, for tools that take a program: choosing the tool is learnt from few rows, and
    computing what was asked from many (docs/benchmarks/quality.md)."""
    ambiguous: Count = 800
    """Rows that need careful reasoning, >= 0: two tools look right, the wording decides."""
    follow_ups: Count = 1600
    """Rows, >= 0, whose query follows earlier turns: "and in Lyon?", "no, on the web", another topic, thanks; none
    where conversation.max_turns is 0."""
    two_requests: Count = 400
    """Rows, >= 0, whose query asks for two things that need two tools: the first is called, Reasoning names the
    other."""
    paraphrases: Count = 200
    """Rows, >= 0, added by `prepare_dataset.py --generator openai`: an OpenAI-compatible endpoint (OPENAI_BASE_URL,
    OPENAI_MODEL, OPENAI_API_KEY) rewrites synthetic rows."""
    splits: list[OpenFraction] = [0.8, 0.1, 0.1]
    """Fractions of train, val and test; stratified by tool, groups of similar rows are never divided."""
    splits_from: FolderPath | None = None
    """A folder with an earlier train.json, val.json and test.json: rows found there stay in their split. Needed where
    training starts from an adapter (`--adapter`) that was trained on that folder."""

    @field_validator("splits")
    @classmethod
    def _sums_to_one(cls, value: list[float]) -> list[float]:
        if len(value) != 3 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("must be three fractions (train, val, test) that sum to 1")
        return value


class ColumnsSection(Section):
    """Your names of the query log's columns; the log must have query and tool, the others may be null (= there is no
    such column)."""

    query: str = "query_text"
    """What the user typed."""
    tool: str = "tool_used"
    """The tool that was called."""
    success: str | None = "success"
    """Whether the call succeeded."""
    quality: str | None = "result_quality"
    """How good the result was; the larger the better."""
    timestamp: str | None = "timestamp"
    """When it was asked."""
    id: str | None = "id"
    """A number, best unique and indexed: the log is read in pages by it, the largest first, and reading continues after
    a lost connection. With another id, or none, it is read once, by time."""
    session: str | None = "session_id"
    """Rows of one session stay in one split."""
    error: str | None = "error_message"
    """Rows with an error are left out."""


class RouterColumnsSection(Section):
    """Columns that the router in the agent writes beside those above; the data set does not need them."""

    decision_id: str = "query_id"
    """Text, best unique and indexed: a decision's id, by which its outcome is reported."""
    confidence: str | None = None
    """A number: the probability of the chosen tool, which `python -m tool_aware.routing.watch` compares with the
    evaluation's; null = there is no such column."""


class FiltersSection(Section):
    """Which rows of the query log are kept."""

    only_success: bool = True
    """Keep only rows whose success column is true; a row without a value is left out."""
    min_result_quality: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.7
    """>= 0, in the unit of your log (0-1, stars, percent): keep rows of this quality or more; null = keep all. Logged
    tools are the old router's choices, so rows that went badly would teach its mistakes."""
    since: datetime | None = None
    """Keep rows from this date on, for example 2026-01-31; null = all. Times without a zone, here and in the log, are
    in UTC."""
    limit: PositiveInt | None = None
    """Rows to read at most, >= 1, the newest; null = all."""

    @field_validator("since", mode="before")
    @classmethod
    def _read_date(cls, value: object) -> object:
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        if value is not None and not isinstance(value, datetime):  # YAML reads 2026-01-31 as a date
            return datetime.fromisoformat(str(value))
        return value


class DatabaseSection(Section):
    """Where the agent's query log lies, and how it is read; host, port, name, user and password are the POSTGRES_*
    variables."""

    schema_name: str = "public"
    """Schema of the table."""
    table: str = "query_logs"
    """Table or view with one row a query."""
    columns: ColumnsSection = ColumnsSection()
    router_columns: RouterColumnsSection = RouterColumnsSection()
    tool_names: dict[str, str] | None = None
    """What logged tools are called now, as in {search: web_search}; null = what the log calls them."""
    filters: FiltersSection = FiltersSection()
    sslmode: Literal["auto", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "auto"
    """auto = verify-full for a remote host, prefer for this machine; or one of libpq's modes."""
    connect_timeout_s: PositiveInt = 5
    """Seconds to wait for a connection, >= 1."""
    statement_timeout_s: PositiveInt = 60
    """Seconds the server may spend on one page of rows, >= 1."""
    deadline_s: PositiveInt = 600
    """Seconds for the whole extraction, >= 1."""
    fetch_size: PositiveInt = 10000
    """Rows per page, >= 1."""


class ExampleQuery(Section):
    """A query that calls a tool, from which training rows are made."""

    query: str = Field(min_length=1)
    """What the user types."""
    parameters: dict[str, Any] | None = None
    """Arguments of the call; null = they are made from the query."""
    reasoning: str | None = None
    """Why this tool; null = a general reason."""


class ToolSection(Section):
    """A tool that the agent can call."""

    name: str
    """Name in calls: a letter or _, then letters, digits, _ and -; 64 characters at most."""
    description: str = Field(min_length=1)
    """What the tool does and when to use it, as the model reads it."""
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    """JSON Schema (draft 2020-12, or an older draft's or OpenAPI's spelling) of the arguments, of type object."""
    examples: list[ExampleQuery] = []
    """Queries that call the tool, for a tool that the synthesis has no content for."""

    @field_validator("name")
    @classmethod
    def _is_a_tool_name(cls, value: str) -> str:
        if not TOOL_NAME.fullmatch(value):
            raise ValueError(f"must match {TOOL_NAME.pattern}")
        return value

    @field_validator("description", mode="before")
    @classmethod
    def _says_something(cls, value: object) -> object:
        if value is None or value == "":
            raise ValueError("is empty; say in a sentence what the tool does and when to use it, the model reads it")
        return value

    @field_validator("parameters", mode="before")
    @classmethod
    def _is_a_schema(cls, value: object, info: ValidationInfo) -> object:
        problems = schema_problems(str(info.data.get("name", "parameters")), value)
        if problems:
            raise ValueError("; ".join(problems))
        return value or {"type": "object", "properties": {}}

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
        """Return the tool without its example queries."""
        return Tool(self.name, self.description, self.parameters)


class ConversationSection(Section):
    """Earlier turns of the same conversation in a prompt: what the user typed, and the tool that was chosen."""

    max_turns: Count = 3
    """Turns, >= 0, the newest; 0 = every query is routed alone. A query without earlier turns has the same prompt
    whatever stands here."""
    max_tokens: Count = 256
    """Tokens, >= 0, estimated, that they may take together; the oldest are left out first."""
    max_gap_minutes: Annotated[float, Field(gt=0)] = 30.0
    """Minutes, > 0: after a longer pause in a logged session the next query begins a new conversation."""


class KeywordRule(Section):
    """A tool, and the words in a query that choose it."""

    tool: str
    """The tool that is chosen."""
    words: list[str]
    """Words of which one in the query is enough."""


class KeywordRouterSection(Section):
    """The agent's present rules, as a baseline to compare with."""

    rules: list[KeywordRule] = []
    """The first rule with a word in the query wins."""
    otherwise: str | None = None
    """The tool where no rule applies; null = none."""


class CostsSection(Section):
    """Costs of a wrong routing decision, in a unit of your choice; a right one costs 0."""

    wrong: Annotated[float, Field(gt=0)] = 1.0
    """Any wrong tool, unless listed in `pairs`; > 0."""
    abstain: Annotated[float, Field(ge=0)] = 0.3
    """Not deciding, >= 0: asking back, or handing over to a larger model."""
    pairs: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = {}
    """right tool: {chosen tool: cost}, >= 0. Here: running code that nobody asked for."""


class EvaluationSection(Section):
    """Evaluation of the base and the fine-tuned model."""

    results_dir: FolderPath = Path("evaluation_results")
    """Metrics, per-row results, comparison.json, figures and report.html are written here."""
    batch_size: PositiveInt = 16
    """Prompts answered at once, >= 1; more is faster. On a 7B each keeps 0.07 GiB of keys and values (128 KiB per
    token), so 48 fit 12 GB."""
    max_new_tokens: PositiveInt = 256
    """Tokens, >= 1, after which an unfinished answer counts as truncated."""
    seed: Seed = 42
    """Seed of the bootstrap's resamples and of the order of shuffled tools."""
    no_tool: str | None = "direct_chat"
    """The tool that stands for calling none; null = there is none."""
    wanted_precision: OpenFraction = 0.9
    """0-1 exclusive: the precision that the confidence threshold in routing_thresholds.json is chosen to reach."""
    judged_as: dict[str, Literal["exact", "search", "code", "message"]] = {}
    """tool.parameter: what a text is judged by, where its schema and name leave it open: exact, search (it finds the
    same), code (it prints the same), message (it keeps the words). docs/HOWTO.md has the rule."""
    costs: CostsSection = CostsSection()
    keyword_router: KeywordRouterSection = KeywordRouterSection()
