"""Which tool the model would choose, read off the forward pass that also gives the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tool_aware.prompt import EncodedExample, tool_name_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from tool_aware.tools import Toolbox


@dataclass(frozen=True)
class ToolNames:
    """The ids of every tool's name and where in a completion they begin."""

    offset: int  # ids of "Tool:" before the name
    ids: list[list[int]]  # name and line end, one list a tool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, tools: Toolbox) -> ToolNames:
        """Tokenise the names of `tools` as they stand in an answer."""
        names = tool_name_tokens(tokenizer, tools.names)
        whole = tokenizer(f"Tool: {tools.names[0]}\n", add_special_tokens=False)["input_ids"]
        return cls(len(whole) - len(names[tools.names[0]]), list(names.values()))


def label_count(example: EncodedExample) -> int:
    """Count the labels of an example: its completion, less a first token that nothing precedes."""
    return len(example.completion) - (not example.prompt)


def right_choices(
    examples: Sequence[EncodedExample], hidden: torch.Tensor, head_weight: torch.Tensor, names: ToolNames
) -> int:
    """Count the examples for which greedy decoding among the tool names ends at the right one.

    It does exactly if at every fork of the names' trie along the right name the right branch scores highest, so the
    teacher-forced states are all it takes. `hidden` (L, H) are the states that predict the examples' labels in order,
    `head_weight` is (V, H).
    """
    right, first = 0, 0
    for example in examples:
        answer = example.completion[names.offset :]
        name = next(ids for ids in names.ids if ids == answer[: len(ids)])
        right += all(
            _best_branch(branches, hidden[first + names.offset + depth], head_weight) == name[depth]
            for depth, branches in enumerate(_forks(name, names.ids))
            if len(branches) > 1
        )
        first += label_count(example)
    return right


def _forks(name: Sequence[int], names: Sequence[Sequence[int]]) -> list[list[int]]:
    return [sorted({ids[depth] for ids in names if ids[:depth] == name[:depth]}) for depth in range(len(name))]


def _best_branch(branches: list[int], state: torch.Tensor, head_weight: torch.Tensor) -> int:
    return branches[int((head_weight[branches] @ state).argmax())]
