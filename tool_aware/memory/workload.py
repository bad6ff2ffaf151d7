"""The lengths of a run's examples, estimated without a tokenizer, which would need the model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tool_aware.config.settings import Config
from tool_aware.memory.architectures import Architecture
from tool_aware.memory.spec import TrainingSpec
from tool_aware.paths import split_file
from tool_aware.prompt import render_preamble
from tool_aware.text import common_prefix_length
from tool_aware.text_files import json_items
from tool_aware.tool_library import training_tools
from tool_aware.tool_lists import draw_list

# Mistral's tokenizer on this toolkit's prompts: 0.25 tokens per character, 0.27 at most; 0.43 at most in answers, which
# are full of punctuation (24 rows of a sample_raw.json).
PROMPT_TOKENS_PER_CHARACTER = 0.27
ANSWER_TOKENS_PER_CHARACTER = 0.43
_DRAWN = 300  # lists, the longest of which stands for a run's
TYPICAL_QUERY_TOKENS, TYPICAL_ANSWER_TOKENS = 80, 100  # rows of the synthetic dataset are shorter than that


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens, upper bounds; `source` says where they come from."""

    longest_tokens: int
    prefix_tokens: int
    answer_tokens: int
    rows: int | None
    source: str


def workload_of(config: Config) -> Workload:
    """Read lengths off data/train.json; without it, take the configured tools and queries and answers of common length.

    No example is longer than max_seq_length: training refuses or drops such rows.
    """
    limit, varied = config.model.max_seq_length, _varied_prefix_tokens(config)
    path = split_file(config.dataset.dir, "train")
    texts = _texts(path) if path.is_file() else []
    if not texts:
        tools = max(varied, round(len(render_preamble(config.toolbox)) * PROMPT_TOKENS_PER_CHARACTER))
        typical = min(limit, tools + TYPICAL_QUERY_TOKENS + TYPICAL_ANSWER_TOKENS)
        return Workload(typical, min(tools, limit), TYPICAL_ANSWER_TOKENS, None, f"no {path} yet: typical rows")
    answer = max(len(response) for _, response in texts) * ANSWER_TOKENS_PER_CHARACTER
    longest = max(
        len(instruction) * PROMPT_TOKENS_PER_CHARACTER + len(response) * ANSWER_TOKENS_PER_CHARACTER
        for instruction, response in texts
    )
    prefix = common_prefix_length([instruction for instruction, _ in texts]) * PROMPT_TOKENS_PER_CHARACTER
    longest, prefix = longest + max(0.0, varied - prefix), max(varied, prefix)
    return Workload(min(limit, round(longest)), min(limit, round(prefix)), round(answer), len(texts), str(path))


def _varied_prefix_tokens(config: Config) -> int:
    """Return the tokens of the longest list of tools that `training.tool_variation` is likely to draw; 0 without."""
    if not config.training.tool_variation:
        return 0
    tools, library = config.toolbox, training_tools()
    lists = (draw_list(tools, library, random.Random(f"{seed}"), None) for seed in range(_DRAWN))
    longest = max(len(render_preamble(drawn.tools.tools)) for drawn in lists)
    return round(longest * PROMPT_TOKENS_PER_CHARACTER)


def rows_to_train_on(config: Config) -> int | None:
    """Return the number of rows of data/train.json; None without any."""
    path = split_file(config.dataset.dir, "train")
    return (len(_texts(path)) if path.is_file() else 0) or None


def spec_of_data(config: Config, architecture: Architecture | None = None) -> tuple[TrainingSpec, str]:
    """Take lengths from data/train.json; return where they come from as well."""
    workload = workload_of(config)
    spec = TrainingSpec.from_config(
        config,
        architecture=architecture,
        longest_tokens=workload.longest_tokens,
        prefix_tokens=workload.prefix_tokens,
        answer_tokens=workload.answer_tokens,
    )
    return spec, workload.source


def _texts(path: Path) -> list[tuple[str, str]]:
    """Return instruction and response of each row that has both; training reports what else is wrong with a row.

    Raises UserError for what is not JSON.
    """
    rows = [item.value for item in json_items(path) if isinstance(item.value, dict)]
    pairs = [(row.get("instruction"), row.get("response")) for row in rows]
    return [(one, other) for one, other in pairs if isinstance(one, str) and isinstance(other, str)]
