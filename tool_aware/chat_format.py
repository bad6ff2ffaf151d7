"""The token ids of a conversation of two turns, made by the model's own chat template, and the loss mask.

A training example is one user turn (`instruction`) and one answer (`response`). What the chat template writes around
them is found once, by rendering it around marks. Ids equal those of `apply_chat_template`, with one exception: control
tokens that a user types, such as `</s>` or `<|im_end|>`, stay text, so that they neither end the turn nor start one.
The loss covers the answer and the token that ends it.

Mistral's instruct models are encoded as mistral-common does, whose ids their templates do not always make.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tool_aware.console import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # torch.nn.functional.cross_entropy's default ignore_index

# What `apply_chat_template` must produce for Mistral v0.1 and v0.2, which write the spaces this way.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant turns are supported') }}{% endif %}{% endfor %}"
)
# Read by templates of models that can think first (Qwen3, SmolLM3); others do not know it.
TEMPLATE_SETTINGS: Mapping[str, Any] = {"enable_thinking": False}

_MISTRAL_NAME = "Mistral's [INST]"
_USER, _ANSWER = "\ue0f0user\ue0f1", "\ue0f0answer\ue0f1"  # private-use characters: no template has them
# One token in every SentencePiece vocabulary with bytes, merged with nothing. A text behind it is not the first one.
_ANCHOR = "\x01"
# Spaces, line ends and bytes outside ASCII, with which tokenizers differ behind a control token.
_PROBES = ("hi", " hi", "\nhi", "two  spaces \n\n end", "日本 é")
_LABEL = "Tool:"
_MANY_TEXTS = 64  # whose ids alone are asked for; offsets and masks of all tokens take as long as these
_FIX = "name an instruct model whose tokenizer has a chat template, or copy its chat_template.jinja into the folder"


# ---- an example -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example: `prompt` with all that precedes the answer, `completion` with its end-of-turn token.

    The labels from `heavy[0]` up to `heavy[1]` of the completion count `weight` times in the loss, the others `rest`.
    """

    prompt: list[int]
    completion: list[int]
    heavy: tuple[int, int] = (0, 0)
    weight: float = 1.0
    rest: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def input_ids(self) -> list[int]:
        """Return the ids of the whole sequence, shape (T,)."""
        return self.prompt + self.completion

    @property
    def label_weights(self) -> list[float]:
        """Return how much each label of the completion counts in the loss."""
        length = len(self.completion)
        first, end = (min(place, length) for place in self.heavy)
        return [self.rest] * first + [self.weight] * (end - first) + [self.rest] * (length - end)

    @property
    def labels(self) -> list[int]:
        """Return `input_ids` with IGNORE_INDEX at every prompt token, shape (T,)."""
        return [IGNORE_INDEX] * len(self.prompt) + self.completion


def encode_example(tokenizer: PreTrainedTokenizerBase, instruction: str, response: str) -> EncodedExample:
    """Tokenise an example as `apply_chat_template` does, or mistral-common, up to the end of the answer."""
    form = chat_format(tokenizer)
    texts = [form.prompt_text(instruction), form.lead_text, form.answer_text(response)]
    run, lead, answer = ids_behind(tokenizer, texts)
    return form.example(run, lead, answer)


def cut_answers(examples: Sequence[EncodedExample], limit: int) -> str | None:
    """Return how many answers of these examples a model could not end in `limit` tokens, in words; None if none."""
    lengths = [len(example.completion) for example in examples]
    if not (count := sum(length > limit for length in lengths)):
        return None
    return (
        f"{count} of {len(lengths)} answers have more than evaluation.max_new_tokens ({limit}) tokens, the longest "
        f"{max(lengths)}: a model is cut short in them, in evaluate.py and behind the exported router; "
        f"--set evaluation.max_new_tokens={max(lengths)}"
    )


def with_heavy_name(
    tokenizer: PreTrainedTokenizerBase, example: EncodedExample, tool: str, weight: float, *, rest: float = 1.0
) -> EncodedExample:
    """Return an example whose loss counts the name of its answer's tool, up to the line end, `weight` times.

    All other labels count `rest` times.
    """
    if weight == rest == 1:
        return example
    return replace(example, heavy=_place_of_name(tokenizer, tool), weight=weight, rest=rest)


_PLACES: WeakKeyDictionary[Any, dict[tuple[ChatFormat, str], tuple[int, int]]] = WeakKeyDictionary()


def _place_of_name(tokenizer: PreTrainedTokenizerBase, tool: str) -> tuple[int, int]:
    """Return where a tool's name begins in the ids of an answer that names it, and where its line ends."""
    known, key = _PLACES.setdefault(tokenizer, {}), (chat_format(tokenizer), tool)
    if key not in known:
        first = len(tool_label_tokens(tokenizer))
        known[key] = first, first + len(tool_name_tokens(tokenizer, [tool])[tool])
    return known[key]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[int]:
    """Tokenise a user turn up to the point where the model answers."""
    return chat_format(tokenizer).prompt_ids(tokenizer, instruction)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that ends an answer: generation stops there, and the loss covers it."""
    return chat_format(tokenizer).end_id


def answer_start(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the spaces with which the text of an answer begins, such as the one of Mistral's `▁Tool`."""
    return chat_format(tokenizer).answer_start


def puts_space_before_runs(tokenizer: PreTrainedTokenizerBase) -> bool | None:
    """Return whether text behind a control token gets a space in front of it; None if not from SentencePiece."""
    if tokenizer.convert_tokens_to_ids("▁") in (None, tokenizer.unk_token_id):
        return None
    ids = _template_ids(tokenizer, f"{chat_format(tokenizer).end}hi")
    return bool(tokenizer.convert_ids_to_tokens(ids)[1].startswith("▁"))


def tool_name_tokens(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> dict[str, list[int]]:
    """Return tool name -> the ids that follow `Tool:` in an answer that names it, line end included.

    The line end makes no name a prefix of another, so that walking the ids as a trie always ends at one tool.
    """
    form, label = chat_format(tokenizer), tool_label_tokens(tokenizer)
    return {name: form.answer_ids(tokenizer, f"{_LABEL} {name}\n", ends=False)[len(label) :] for name in names}


def tool_label_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of `Tool:`, with which every answer begins."""
    return chat_format(tokenizer).answer_ids(tokenizer, _LABEL, ends=False)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode generated ids into text, without control tokens."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))  # a list of texts only for a list of lists


# ---- the format -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatFormat:
    """The text and control tokens that a chat template writes around a user turn and its answer.

    Control tokens cut the whole into runs of text, and a run is tokenised as one: a template's text may share tokens
    with the user's. Written out, with ids in brackets:

        [begin] before USER after [middle] lead ANSWER tail [end]

    `middle` and `lead` are empty if no control token stands between the two turns; then the answer continues the
    user's run.
    """

    name: str  # for the plan
    begin: tuple[int, ...]
    before: str
    after: str
    middle: tuple[int, ...]
    lead: str
    answer_start: str  # spaces with which the answer begins; labels, not part of the prompt
    tail: str
    end: str  # the token that ends an answer
    end_id: int
    strips: bool  # the template strips white space around the user's text
    takes_space: bool  # the control token before the user's run takes the white space with which the run begins
    anchored: bool  # a run behind a control token has other ids than the same text alone, which gets a space in front
    alone: bool  # the answer is tokenised as a text of its own: mistral-common does, and so do servers in effect

    @property
    def lead_text(self) -> tuple[str, str]:
        """Return `lead` behind what stands in front of it for the tokenizer."""
        return self._anchor, self.lead

    def prompt_text(self, instruction: str) -> tuple[str, str]:
        """Return the text of a user turn up to the next control token, behind what stands in front of it."""
        text = instruction.strip() if self.strips else instruction
        run = self.before + text + self.after
        return self._anchor if self.begin else "", run.lstrip() if self.takes_space else run

    def answer_text(self, answer: str, *, ends: bool = True) -> tuple[str, str]:
        """Return the text of an answer up to its end, or the beginning of one, behind what stands in front of it."""
        text = answer + self.tail * ends
        if self.name == _MISTRAL_NAME:
            return "", text
        before = self.lead if self.middle else self.after  # in the run that the answer is in
        return self._anchor + before * (not self.alone), self.answer_start + text

    def example(self, run: Sequence[int], lead: Sequence[int], answer: Sequence[int]) -> EncodedExample:
        """Return an example, given the ids of the texts above."""
        return EncodedExample([*self.begin, *run, *self.middle, *lead], [*answer, self.end_id])

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[int]:
        """Return the ids of a user turn up to the point where the model answers."""
        run, lead = ids_behind(tokenizer, [self.prompt_text(instruction), self.lead_text])
        return self.example(run, lead, ()).prompt

    def answer_ids(self, tokenizer: PreTrainedTokenizerBase, answer: str, *, ends: bool = True) -> list[int]:
        """Return the ids of an answer without the end-of-turn token; with `ends` false, of the beginning of one."""
        return ids_behind(tokenizer, [self.answer_text(answer, ends=ends)])[0]

    @cached_property
    def sha256(self) -> str:
        """Return the identity of the format: equal if and only if prompts and answers are encoded alike."""
        parts = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def _anchor(self) -> str:
        return _ANCHOR if self.anchored else ""


def ids_behind(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Return the ids of each text behind its context, given as (context, text), without those of the context."""
    contexts = list(dict.fromkeys(context for context, text in texts if context and text))
    whole = [context + text for context, text in texts if text]
    ids = iter(_split_ids(tokenizer, [*contexts, *whole]))
    lengths = {context: len(next(ids)) for context in contexts}
    return [next(ids)[lengths.get(context, 0) :] if text else [] for context, text in texts]


def _split_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # split_special_tokens: "</s>" typed by a user is five characters, not the end of the sequence.
    if len(texts) >= _MANY_TEXTS and hasattr(tokenizer, "backend_tokenizer"):
        tokenizer(texts[:1], add_special_tokens=False, split_special_tokens=True)  # sets the backend accordingly
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)  # leaves out offsets
        ids = [one.ids for one in encoded]
        if max(map(len, ids)) <= tokenizer.model_max_length:  # else transformers warns
            return ids
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []


def _template_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


_FORMATS: WeakKeyDictionary[Any, tuple[object, ChatFormat]] = WeakKeyDictionary()  # with the template it is of


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Return the format of a tokenizer's chat template, found once.

    Raises UserError if there is no template, if it refuses a user turn alone, if it ends answers with no token of its
    own, or if it does not write the two turns one behind the other.
    """
    known = _FORMATS.get(tokenizer)
    if known is None or known[0] != tokenizer.chat_template:
        known = _FORMATS[tokenizer] = (tokenizer.chat_template, _find_format(tokenizer))
    return known[1]


def _find_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    if not tokenizer.chat_template:
        raise _template_error("its tokenizer has no chat template")
    prompt = _render(tokenizer, [("user", _USER)], "a user turn alone")
    if prompt.replace(" ", "") == f"{tokenizer.bos_token}[INST]{_USER}[/INST]":
        return _mistral_format(tokenizer)
    whole = _render(tokenizer, [("user", _USER), ("assistant", _ANSWER)], "an answer")
    if prompt.count(_USER) != 1 or whole.count(_USER) != 1 or whole.count(_ANSWER) != 1:
        raise _template_error("its chat template does not write each turn once, as it is")
    before, after = prompt.split(_USER)
    middle, tail = whole.split(_USER)[1].split(_ANSWER)
    asks_for_thoughts = not middle.startswith(after)
    if asks_for_thoughts:  # with `<think>`, say; the answer comes at once all the same
        middle = after
    start = middle[len(middle.rstrip(" ")) :] if len(middle) > len(after) else ""
    form = _cut_at_controls(tokenizer, before, middle[: len(middle) - len(start)], start, tail)
    if not asks_for_thoughts and _different_ids(tokenizer, form, whole=True) is None:
        return form
    # The tokenizer joins the end of the prompt with the answer (line ends, say), and a server cannot: it tokenises the
    # prompt when there is no answer yet.
    form = replace(form, alone=True)
    if problem := _different_ids(tokenizer, form, whole=False):
        raise _template_error(problem)
    return form


def _mistral_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Return the format of Mistral's models: [INST] is text in v0.1 and v0.2, and a control token in later ones."""
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise _template_error("its tokenizer has no BOS or EOS token, although its template is Mistral's")
    added = tokenizer.get_added_vocab()
    opening, closing = added.get("[INST]"), added.get("[/INST]")
    has_marks = opening is not None and closing is not None
    first = tokenizer.convert_ids_to_tokens(_split_ids(tokenizer, [_LABEL])[0])[0]
    return ChatFormat(
        name=_MISTRAL_NAME,
        begin=(tokenizer.bos_token_id, *((opening,) if opening is not None and has_marks else ())),
        before="" if has_marks else "[INST] ",
        after="" if has_marks else " [/INST]",
        middle=(closing,) if closing is not None and has_marks else (),
        lead="",
        answer_start=" " if first.startswith("▁") else "",
        tail="",
        end=str(tokenizer.eos_token),
        end_id=tokenizer.eos_token_id,
        strips=False,
        takes_space=False,
        anchored=False,
        alone=True,
    )


def _cut_at_controls(tokenizer: PreTrainedTokenizerBase, before: str, middle: str, start: str, tail: str) -> ChatFormat:
    """Return the format of a template that writes `before` USER `middle` `start` ANSWER `tail`."""
    controls = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)")
    in_before, in_middle = list(found.finditer(before)), list(found.finditer(middle))
    ending = found.search(tail)
    if ending is None:
        raise _template_error("its chat template ends an answer with no control token, so nothing would stop it")
    opening = before[: in_before[-1].end()] if in_before else ""
    first, last = (in_middle[0], in_middle[-1]) if in_middle else (None, None)
    between = middle[first.start() : last.end()] if first and last else ""
    lead = middle[last.end() :] if last else ""
    if last and controls[last[0]].rstrip:
        lead = lead.lstrip()
    return ChatFormat(
        name="the tokenizer's chat template",
        begin=tuple(_template_ids(tokenizer, opening)) if opening else (),
        before=before[len(opening) :],
        after=middle[: first.start()] if first else middle,
        middle=tuple(_template_ids(tokenizer, between)) if between else (),
        lead=lead,
        answer_start=start,
        tail=tail[: ending.start()],
        end=ending[0],
        end_id=_template_ids(tokenizer, ending[0])[0],
        strips=_strips(tokenizer),
        takes_space=bool(in_before) and controls[in_before[-1][0]].rstrip,
        anchored=_needs_anchor(tokenizer, ending[0]),
        alone=False,
    )


def _strips(tokenizer: PreTrainedTokenizerBase) -> bool:
    return f" {_USER} " not in _render(tokenizer, [("user", f" {_USER} ")], "a user turn alone")


def _needs_anchor(tokenizer: PreTrainedTokenizerBase, control: str) -> bool:
    """Return whether a text behind a control token has other ids than the text alone."""
    # "hi" alone would do, but for control tokens that take white space
    return _template_ids(tokenizer, f"{control}hi")[1:] != _split_ids(tokenizer, ["hi"])[0]


def _different_ids(tokenizer: PreTrainedTokenizerBase, form: ChatFormat, *, whole: bool) -> str | None:
    """Return how the ids of a rendered conversation, or of the prompt alone, differ from those made of its parts."""
    for user in _PROBES:
        answer = f"{_LABEL} a\n{user.strip()}"
        turns, own = [("user", user)], form.prompt_ids(tokenizer, user)
        if whole:
            turns.append(("assistant", answer))
            own = [*own, *form.answer_ids(tokenizer, answer), form.end_id]
        expected = _template_ids(tokenizer, _render(tokenizer, turns, "an answer"))
        if own == expected or (whole and own == expected[: len(own)]):
            continue
        place = next((i for i, (a, b) in enumerate(zip(own, expected, strict=False)) if a != b), len(expected))
        theirs, ours = (tokenizer.convert_ids_to_tokens(ids[place : place + 4]) for ids in (expected, own))
        return f"its tokenizer reads the chat template's text in one piece otherwise than in parts: {theirs} and {ours}"
    return None


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], what: str) -> str:
    """Return the template's text for some turns, up to where the model answers if the last is the user's."""
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=turns[-1][0] == "user", **TEMPLATE_SETTINGS
        )
    except Exception as error:  # of jinja, and whatever a template raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _template_error(f"its chat template refuses {what}: {reason}") from error
    return str(rendered)


def _template_error(what: str) -> UserError:
    return UserError(what, where="model.name", fix=_FIX)
