"""The tool that the model would choose, from the forward pass that also gives the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tool_aware.chat_format import EncodedExample, tool_label_tokens, tool_name_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from tool_aware.engine.packing import Pack
    from tool_aware.tools import Toolbox

# For a few examples: their pack, the states that predict its labels (L, H), and the output head (V, H).
AnswerStates = Callable[[Sequence[EncodedExample]], "tuple[Pack, torch.Tensor, torch.Tensor]"]


@dataclass(frozen=True)
class ToolNames:
    """The ids of every tool's name and where in a completion they begin."""

    offset: int  # ids of "Tool:" before the name
    ids: list[list[int]]  # name and line end, one list a tool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, tools: Toolbox) -> ToolNames:
        """Tokenise the names of `tools` as they stand in an answer."""
        names = tool_name_tokens(tokenizer, tools.names)
        return cls(len(tool_label_tokens(tokenizer)), list(names.values()))


def label_count(example: EncodedExample) -> int:
    """Count the labels of an example: its completion, less a first token that nothing precedes."""
    return len(example.completion) - (not example.prompt)


def label_weight(example: EncodedExample) -> float:
    """Return what an example's labels count together in the loss of a step."""
    weights = example.label_weights
    return sum(weights if example.prompt else weights[1:])


def chosen_tools(
    examples: Sequence[EncodedExample], hidden: torch.Tensor, head_weight: torch.Tensor, names: ToolNames
) -> list[tuple[int, ...]]:
    """Return, for each example, the numbers of the tools at which greedy decoding among the tool names can end.

    The states are teacher-forced: they follow the right name. Where the best branch leaves it, what comes behind is
    not known, so all tools of that branch are given; nearly always that is one. `hidden` (L, H) are the states that
    predict the examples' labels in order, `head_weight` is (V, H).
    """
    chosen, first = [], 0
    for example in examples:
        name = names.ids[right_tool(example, names)]
        left = list(range(len(names.ids)))
        for depth in range(len(name)):
            branches = sorted({names.ids[tool][depth] for tool in left})
            best = branches[0]
            if len(branches) > 1:
                best = _best_branch(branches, hidden[first + names.offset + depth], head_weight)
            left = [tool for tool in left if names.ids[tool][depth] == best]
            if best != name[depth]:
                break
        chosen.append(tuple(left))
        first += label_count(example)
    return chosen


def right_choices(
    examples: Sequence[EncodedExample], hidden: torch.Tensor, head_weight: torch.Tensor, names: ToolNames
) -> int:
    """Count the examples for which greedy decoding among the tool names ends at the right one."""
    chosen = chosen_tools(examples, hidden, head_weight, names)
    return sum(tools == (right_tool(example, names),) for example, tools in zip(examples, chosen, strict=True))


def right_tool(example: EncodedExample, names: ToolNames) -> int:
    """Return the number of the tool that an example's completion names.

    Raises ValueError if it names none where `render_response` writes the name; `load_rows` lets no such row through.
    """
    answer = example.completion[names.offset :]
    for number, ids in enumerate(names.ids):
        if ids == answer[: len(ids)]:
            return number
    raise ValueError(f"no tool's name stands {names.offset} tokens into the answer {example.completion[:16]}")


def _best_branch(branches: list[int], state: torch.Tensor, head_weight: torch.Tensor) -> int:
    return branches[int((head_weight[branches] @ state).argmax())]
