"""The examples of each optimizer step: rows as they are, or, in a share of the steps, with another list of tools.

All examples of a step share one list, so that a prefix-shared pack holds it once. What a step sees is a function of
(seed, step, row): a resumed run sees the same, and so do runs whose steps are divided otherwise into micro-batches and
processes. Where the list offers tools of the library, some rows are replaced by the library's queries, in proportion to
the tools; a row whose tool is missing has the answer that is right without it.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from tool_aware.batch_encoding import encode_examples
from tool_aware.chat_format import EncodedExample, encode_prompt, with_heavy_name
from tool_aware.config.settings import Config
from tool_aware.prompt import render_instruction, render_preamble, render_response
from tool_aware.rows import Row
from tool_aware.tool_library import queries_of, training_tools
from tool_aware.tool_lists import DrawnList, as_listed, draw_list
from tool_aware.tools import Toolbox, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CALLS_KEPT = 16_384
_LONGEST = 16  # lists, by characters, that are tokenised to find the longest in tokens


@dataclass(frozen=True)
class MostTokens:
    """Upper bounds, in tokens, of a step's examples: their prefix, what is behind it, and the answer alone."""

    prefix: int
    rest: int
    answer: int


class StepExamples:
    """Examples by step and row number; `share` of the steps have another list of tools.

    `rows` and `examples` are the rows of train.json and their ids, in the same order. Rows whose instruction this
    toolkit did not render stay as they are.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        examples: Sequence[EncodedExample],
        tokenizer: PreTrainedTokenizerBase,
        tools: Toolbox,
        *,
        share: float,
        seed: int,
        no_tool: str | None,
        limit: int,
        tool_weight: float = 1.0,
    ) -> None:
        self._rows, self._examples, self._tokenizer, self._tools = rows, examples, tokenizer, tools
        self._share, self._seed, self._no_tool, self._limit = share, seed, no_tool, limit
        self._tool_weight = tool_weight
        own = {tool.name for tool in tools}
        self._library = [entry for entry in training_tools() if entry.tool.name not in own]
        self._own = as_listed(tools)
        self._drawn = lru_cache(maxsize=4)(self._draw)
        self._call = lru_cache(maxsize=_CALLS_KEPT)(self._right_call)
        self._known: tuple[int, Counter[str], list[Toolbox]] | None = None

    @classmethod
    def of(
        cls, config: Config, rows: Sequence[Row], examples: Sequence[EncodedExample], tokenizer: PreTrainedTokenizerBase
    ) -> StepExamples | None:
        """Return what `training.tool_variation` asks for; None if every step lists the agent's own tools."""
        if not config.training.tool_variation:
            return None
        return cls(
            *(rows, examples, tokenizer, config.toolbox),
            share=config.training.tool_variation,
            seed=config.training.seed,
            no_tool=config.evaluation.no_tool,
            limit=config.model.max_seq_length,
            tool_weight=config.training.tool_weight,
        )

    def of_step(self, step: int, numbers: Sequence[int]) -> list[EncodedExample]:
        """Return the examples of some rows in the optimizer step after `step` others."""
        drawn = self._drawn(step)
        if drawn is None:
            return [self._examples[number] for number in numbers]
        rows = [self._row(drawn, step, number) for number in numbers]
        pairs = [(row.instruction, row.response) for row in rows if row]
        encoded = iter(encode_examples(self._tokenizer, pairs, shared=drawn.tools.preamble))
        return [
            self._weighted(row, next(encoded), self._examples[number]) if row else self._examples[number]
            for row, number in zip(rows, numbers, strict=True)
        ]

    def list_of(self, step: int) -> DrawnList | None:
        """Return the list of tools that a step has; None if it has the agent's own."""
        return self._drawn(step)

    def text(self, steps: int) -> str:
        """Return what changes over a run of so many steps, for the plan and the run card."""
        found, _ = self._summary(steps)
        varied = found["varied"]
        parts = [f"{kind} {count / varied:.0%}" for kind, count in sorted(found.items()) if kind != "varied"]
        return f"{varied:,} of {steps:,} steps list other tools; of these: {', '.join(parts) or 'none'}"

    def most_tokens(self, steps: int, shared: int) -> MostTokens:
        """Return upper bounds of what a step's examples take; `shared` is the prefix of the plain ones."""
        _, longest = self._summary(steps)
        prompts = [encode_prompt(self._tokenizer, render_instruction("", tools)) for tools in longest]
        names = max((len(name) for tools in longest for name in tools.names), default=0)  # in the answer
        box = as_listed(Toolbox(entry.tool for entry in self._library))
        one = Toolbox(list(box.tools)[:1])  # what a query and its answer take is the same behind any list
        bare = len(encode_prompt(self._tokenizer, render_instruction("", one)))
        pairs = [
            (render_instruction(asked.query, one), render_response(box.answer_of(asked)))
            for _, asked in queries_of(self._library)
        ]
        library = encode_examples(self._tokenizer, pairs, shared=render_preamble(one))
        rest = max(map(len, self._examples)) - shared
        return MostTokens(
            prefix=max(map(len, prompts), default=0),
            rest=names + max([rest, *(len(example) - bare for example in library)]),
            answer=names + max([0, *(len(example.completion) for example in library)]),
        )

    def _summary(self, steps: int) -> tuple[Counter[str], list[Toolbox]]:
        """Count the kinds of changes, and the varied steps; return the longest lists, by characters, as well."""
        if self._known and self._known[0] == steps:
            return self._known[1:]
        counts, sizes = Counter({"varied": 0}), list[tuple[int, int, Toolbox]]()
        for step in range(steps):
            if drawn := self._draw(step):
                counts.update({"varied": 1, **dict.fromkeys(drawn.changes, 1)})
                sizes.append((len(render_preamble(drawn.tools.tools)), step, drawn.tools.tools))
        longest = [tools for *_, tools in heapq.nlargest(_LONGEST, sizes, key=lambda item: item[:2])]
        self._known = (steps, counts, longest)
        return counts, longest

    def _draw(self, step: int) -> DrawnList | None:
        random_ = random.Random(f"{self._seed}/tools/{step}")
        if random_.random() >= self._share:
            return None
        return draw_list(self._tools, self._library, random_, self._no_tool)

    def _row(self, drawn: DrawnList, step: int, number: int) -> Row | None:
        """Return a row with the drawn list, or a query of the library in its place; None if the row stays as it is."""
        random_ = random.Random(f"{self._seed}/row/{step}/{number}")
        if random_.random() < drawn.own_share:
            call = self._call(number)
            return drawn.tools.rewrite(self._rows[number], call) if call else None
        return drawn.tools.row_of(random_.choice(drawn.library)) if drawn.library else None

    def _weighted(self, row: Row, example: EncodedExample, plain: EncodedExample) -> EncodedExample:
        """Return a row's example with the weights of its labels; the plain one if it is too long."""
        if len(example) > self._limit:
            return plain
        rest = float(not row.is_choice_only)
        return with_heavy_name(self._tokenizer, example, row.tool, self._tool_weight, rest=rest)

    def _right_call(self, number: int) -> ToolCall | None:
        """Return the call of a row; None if its prompt is not the one that lists the agent's tools."""
        row = self._rows[number]
        return row.answer.call if row.instruction == self._own.instruction(row) else None
