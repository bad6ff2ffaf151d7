"""The token ids of many examples, made in one call of the tokenizer; what their prompts begin with is tokenised once.

The prompts of a list of tools differ in their last few lines only, and a fast GPU would wait for a tokenizer that reads
all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tool_aware.chat_format import EncodedExample, chat_format, ids_behind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LINE_END = "\n"
_LINE_END_AS_BYTE = "Ċ"  # in the vocabularies of GPT-2's kind


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], *, shared: str = ""
) -> list[EncodedExample]:
    """Tokenise (instruction, response) pairs as `encode_example` does, in one call, which uses several threads.

    Instructions that begin with the text `shared` are cut in it at a line end, if the tokenizer allows that, and what
    precedes the cut is tokenised once.
    """
    if not pairs:
        return []
    form = chat_format(tokenizer)
    prompts = [form.prompt_text(instruction) for instruction, _ in pairs]
    answers = [form.answer_text(response) for _, response in pairs]
    cut = _place_to_cut(tokenizer, [run for _, run in prompts], shared) if len(pairs) > 1 else 0
    if cut:
        prompts = [prompts[0], *((_LINE_END, run[cut:]) for _, run in prompts)]
    ids = ids_behind(tokenizer, [*prompts, *answers, form.lead_text])
    runs, completions, lead = ids[: len(prompts)], ids[len(prompts) : -1], ids[-1]
    if cut:
        whole, *ends = runs
        begin = whole[: len(whole) - len(ends[0])]
        if begin + ends[0] != whole:
            return encode_examples(tokenizer, pairs)
        runs = [begin + end for end in ends]
    return [form.example(run, lead, completion) for run, completion in zip(runs, completions, strict=True)]


_IS_CUT_BEFORE: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()  # by a line's first character


def _place_to_cut(tokenizer: PreTrainedTokenizerBase, runs: Sequence[str], shared: str) -> int:
    """Return where the last line of `shared` begins in all runs; 0 if they may not be cut there.

    No token of the vocabulary may reach over that place: then no merge on one side depends on the other side.
    """
    core, first = shared.strip(), runs[0]
    place = first.find(core) if core else -1
    cut = first.rfind(_LINE_END, 0, place + len(core) - 1) + 1 if place >= 0 else 0
    letter = first[cut : cut + 1]
    if not cut or not letter.isascii() or not letter.isalpha() or not all(run[:cut] == first[:cut] for run in runs):
        return 0
    known = _IS_CUT_BEFORE.setdefault(tokenizer, {})
    if letter not in known:
        over = (_LINE_END + letter, _LINE_END_AS_BYTE + letter)
        known[letter] = not any(text in token for token in tokenizer.get_vocab() for text in over)
    return cut if known[letter] else 0
