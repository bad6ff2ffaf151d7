"""A model in this process that answers many askers: one thread runs it, and takes together what waits.

Choices go before answers: they are short, and an agent can begin to act on them.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tool_aware.chat_format import decode, encode_prompt, end_id, tool_label_tokens, tool_name_tokens
from tool_aware.console import Fallbacks
from tool_aware.inference.constrained import AnswerGrammar
from tool_aware.inference.drafts import Phrases
from tool_aware.inference.generation import BatchDecoder
from tool_aware.inference.name_scores import score_names
from tool_aware.inference.prefix_cache import Prefix
from tool_aware.prompt import Turn, render_instruction
from tool_aware.router_settings import RouterSettings
from tool_aware.text import common_prefix_length
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tool_aware.engine.continuations import ContinuationScorer
    from tool_aware.engine.decoder import PackedDecoder
    from tool_aware.engine.merged_layers import MergedLayers
    from tool_aware.inference.drafted_decoding import DraftingDecoder

T = TypeVar("T")

_ROWS_STEP = 4  # decoders have 1, 4, 16, ... rows: rows that are filled up cost time, every decoder costs memory
_LENGTH_STEP = 256  # tokens; a decoder is made anew for longer prompts, with so much to spare
MOST_KEPT_TOKENS = 4096  # of other lists' prefixes together: half a GiB on Mistral-7B in 16 bit
_SPARE_TOKENS = 2  # of the shared prefix: its last ones may be others before another query


@dataclass(frozen=True, eq=False)
class _Listed:
    """A list of tools as the model is asked about it: the ids of the names, the grammar of the answers, and the tokens
    with which its prompts begin.
    """

    names: Mapping[str, list[int]]
    grammar: AnswerGrammar
    beginning: list[int]

    def begins(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Return whether all prompts begin with these tokens, with at least one more behind them."""
        size = len(self.beginning)
        return all(len(prompt) > size and list(prompt[:size]) == self.beginning for prompt in prompts)


@dataclass
class _Kept:
    """The parts of a list that were run once: for answers, and for choices."""

    prefix: Prefix | None = None
    scorer: ContinuationScorer | None = None


@dataclass(frozen=True, eq=False)
class _Asked:
    """A prompt that waits, and where its answer goes; `tool` is the one whose parameters are asked for."""

    prompt: list[int]
    listed: _Listed
    future: Future[Any] = field(default_factory=Future)
    tool: str = ""


class LocalEngine:
    """Base and adapter, or a merged model, on this machine. `close` ends its thread."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: RouterSettings,
        *,
        batch_size: int,
    ) -> None:
        tools = settings.toolbox
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self._max_new_tokens = settings.max_new_tokens
        self._label, self._own = tool_label_tokens(tokenizer), self._listed(tools)
        self._decoder_of_choices = _decoder_of_choices(model, settings)
        self._kept: OrderedDict[_Listed, _Kept] = (
            OrderedDict()
        )  # of the own list and others, the one used last at the end
        self._decoders: dict[int, BatchDecoder] = {}
        self._merged, self._phrases = _merged(model, settings), Phrases()  # of answers on a CPU
        self._choices, self._answers = deque[_Asked](), deque[_Asked]()
        self._has_work = threading.Condition()
        self._is_closed = False
        self._scorer(self._own, [])  # with all that takes long the first time
        self._thread = threading.Thread(target=self._work, name="router", daemon=True)
        self._thread.start()

    # ---- asking ---------------------------------------------------------------------------------------------

    def choose(self, prompt: list[int]) -> Future[dict[str, float]]:
        """Return what becomes tool -> natural log-probability; `prompt` ends where the answer begins."""
        return self.choose_among(prompt, self._own)

    def complete(self, prompt: list[int], tool: str) -> Future[str]:
        """Return what becomes the text of the answer that calls `tool`."""
        return self.complete_one(prompt, tool, self._own)

    def for_tools(self, tools: Toolbox) -> ListedEngine:
        """Return the same model asked about other tools; of the lists asked last, their part of the prompt is kept."""
        return ListedEngine(self, self._listed(tools))

    def choose_among(self, prompt: list[int], listed: _Listed) -> Future[dict[str, float]]:
        """Return what becomes name -> natural log-probability, for the names of a list."""
        return self._wait_for(self._choices, _Asked(prompt + self._label, listed))

    def complete_one(self, prompt: list[int], tool: str, listed: _Listed) -> Future[str]:
        """Return what becomes the text of the answer that calls a tool of a list."""
        return self._wait_for(self._answers, _Asked(prompt + self._label + listed.names[tool], listed, tool=tool))

    def close(self) -> None:
        """Answer nothing more; what waits is cancelled."""
        with self._has_work:
            self._is_closed = True
            for asked in (*self._choices, *self._answers):
                asked.future.cancel()
            self._has_work.notify_all()
        self._thread.join()

    def _listed(self, tools: Toolbox) -> _Listed:
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        grammar = AnswerGrammar(self._tokenizer, tools, vocabulary=vocabulary)
        samples = [("a", ()), ("7", ()), ("日", (Turn("b", None),))]
        prompts = [encode_prompt(self._tokenizer, render_instruction(query, tools, turns)) for query, turns in samples]
        beginning = prompts[0][: common_prefix_length(prompts) - _SPARE_TOKENS]
        return _Listed(tool_name_tokens(self._tokenizer, tools.names), grammar, beginning)

    def _wait_for(self, queue: deque[_Asked], asked: _Asked) -> Future[Any]:
        with self._has_work:
            if self._is_closed:
                asked.future.set_exception(RuntimeError("the router is closed"))
            else:
                queue.append(asked)
                self._has_work.notify()
        return asked.future

    # ---- the thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._has_work:
                self._has_work.wait_for(lambda: self._is_closed or self._choices or self._answers)
                if self._is_closed:
                    return
                queue, run = (self._choices, self._score) if self._choices else (self._answers, self._decode)
                taken = [asked for asked in queue if asked.listed is queue[0].listed][: self._batch_size]
                for asked in taken:
                    queue.remove(asked)
            waiting = [asked for asked in taken if asked.future.set_running_or_notify_cancel()]
            if waiting:
                self._answer(waiting, run)

    def _answer(self, asked: Sequence[_Asked], run: Callable[[Sequence[_Asked]], list[Any]]) -> None:
        """Answer some askers; where memory does not suffice for all at once, and from then on, half of them."""
        import torch

        try:
            for one, answer in zip(asked, run(asked), strict=True):
                one.future.set_result(answer)
        except torch.cuda.OutOfMemoryError as error:
            self._decoders.clear()
            self._kept.clear()
            torch.cuda.empty_cache()
            if len(asked) == 1:
                asked[0].future.set_exception(error)
                return
            self._batch_size = math.ceil(len(asked) / 2)
            for start in range(0, len(asked), self._batch_size):
                self._answer(asked[start : start + self._batch_size], run)
        except Exception as error:  # goes to those who asked; the thread serves the next ones
            for one in asked:
                one.future.set_exception(error)

    def _score(self, asked: Sequence[_Asked]) -> list[dict[str, float]]:
        prompts, listed = [one.prompt for one in asked], asked[0].listed
        if scorer := self._scorer(listed, prompts):
            return [dict(zip(listed.names, scores, strict=True)) for scores in scorer.scores(prompts)]
        prefix = self._prefix_of(listed, prompts)
        found: dict[int, dict[str, float]] = {}
        for batch in score_names(self._model, prompts, listed.names, batch_size=len(prompts), prefix=prefix):
            found.update(batch)
        return [found[place] for place in range(len(asked))]

    def _decode(self, asked: Sequence[_Asked]) -> list[str]:
        prompts, members = [one.prompt for one in asked], list(range(len(asked)))
        begun = {place: self._label + one.listed.names[one.tool] for place, one in enumerate(asked)}
        decoder = self._decoder(asked[0].listed, prompts)
        answers = decoder.run(prompts, members, asked[0].listed.grammar.processor(members, begun))
        return [
            f"Tool: {one.tool}\n{decode(self._tokenizer, answer.ids)}"
            for one, answer in zip(asked, answers, strict=True)
        ]

    def _scorer(self, listed: _Listed, prompts: Sequence[Sequence[int]]) -> ContinuationScorer | None:
        """Return what scores the names of a list; None if the own decoder cannot, or the prompts begin otherwise."""
        if self._decoder_of_choices is None or not listed.begins(prompts):
            return None
        from tool_aware.engine.continuations import ContinuationScorer

        kept = self._kept_of(listed)
        if kept.scorer is None:
            names = list(listed.names.values())
            kept.scorer = ContinuationScorer(self._decoder_of_choices, listed.beginning, names)
            if listed is self._own:
                kept.scorer.warm_up()
        return kept.scorer

    def _prefix_of(self, listed: _Listed, prompts: Sequence[Sequence[int]]) -> Prefix | None:
        """Return the part of the prompt that a list of tools shares, run once; None if the prompts begin otherwise."""
        if not listed.begins(prompts):
            return None
        kept = self._kept_of(listed)
        if kept.prefix is None:
            kept.prefix = Prefix.of(self._model, listed.beginning)
        return kept.prefix

    def _kept_of(self, listed: _Listed) -> _Kept:
        """Return what is kept of a list; of those that were asked longest ago, nothing is."""
        kept = self._kept.pop(listed, None) or _Kept()
        self._kept[listed] = kept
        others = [other for other in self._kept if other is not self._own]
        while len(others) > 1 and sum(len(other.beginning) for other in others) > MOST_KEPT_TOKENS:
            del self._kept[others.pop(0)]
        return kept

    def _decoder(self, listed: _Listed, prompts: Sequence[Sequence[int]]) -> BatchDecoder | DraftingDecoder:
        """Return what answers some prompts of a list: with drafts on a CPU, if it can be."""
        prefix = self._prefix_of(listed, prompts)
        if self._merged is None:
            return self._batch_decoder(listed, prompts, prefix)
        from tool_aware.inference.drafted_decoding import DraftingDecoder

        return DraftingDecoder(
            self._merged,
            prefix or Prefix.shared_by(self._model, prompts),
            self._phrases,
            eos_id=end_id(self._tokenizer),
            max_new_tokens=self._max_new_tokens,
        )

    def _batch_decoder(self, listed: _Listed, prompts: Sequence[Sequence[int]], prefix: Prefix | None) -> BatchDecoder:
        """Return a decoder with room for some prompts, kept for the next ones if they are no more and no longer.

        Those of other tools are not kept.
        """
        rows, longest = 1, max(map(len, prompts))
        while rows < len(prompts):
            rows *= _ROWS_STEP
        rows = min(rows, self._batch_size)
        is_kept = prefix is not None and listed is self._own
        kept = self._decoders.get(rows)
        if kept is not None and kept.longest >= longest and is_kept:
            return kept
        decoder = BatchDecoder(
            self._model,
            prefix or Prefix.shared_by(self._model, prompts),
            rows=rows,
            longest=math.ceil(longest / _LENGTH_STEP) * _LENGTH_STEP,
            eos_id=end_id(self._tokenizer),
            max_new_tokens=self._max_new_tokens,
            fallbacks=Fallbacks(),
        )
        if is_kept:
            self._decoders[rows] = decoder
        return decoder


class ListedEngine:
    """A loaded model that is asked about another list of tools than its own; the model stays open when this closes."""

    def __init__(self, engine: LocalEngine, listed: _Listed) -> None:
        self._engine, self._listed = engine, listed

    def choose(self, prompt: list[int]) -> Future[dict[str, float]]:
        """Return what becomes tool -> natural log-probability; `prompt` ends where the answer begins."""
        return self._engine.choose_among(prompt, self._listed)

    def complete(self, prompt: list[int], tool: str) -> Future[str]:
        """Return what becomes the text of the answer that calls `tool`."""
        return self._engine.complete_one(prompt, tool, self._listed)

    def for_tools(self, tools: Toolbox) -> ListedEngine:
        """Return the same model asked about other tools."""
        return self._engine.for_tools(tools)

    def close(self) -> None:
        """Do nothing."""


def _decoder_of_choices(model: PeftModel | PreTrainedModel, settings: RouterSettings) -> PackedDecoder | None:
    """Return the decoder that trains, which runs choices faster than transformers does; None if it cannot run them."""
    from tool_aware.engine.decoder import PackedDecoder
    from tool_aware.engine.supported import broken_kernels, unsupported_forward

    if unsupported_forward(model, settings.model.max_seq_length) or broken_kernels(model.device):
        return None
    return PackedDecoder(model)


def _merged(model: PeftModel | PreTrainedModel, settings: RouterSettings) -> MergedLayers | None:
    """Return the model's layers for answers with drafts; None on a GPU, or if they cannot be merged."""
    if model.device.type != "cpu":
        return None
    from tool_aware.engine.merged_layers import merged_layers

    return merged_layers(model, settings.model.max_seq_length)


def load_engine(
    folder: Path, settings: RouterSettings, tokenizer: PreTrainedTokenizerBase, *, hf_token: str | None, batch_size: int
) -> LocalEngine:
    """Load the adapter in `folder` on its base model, quantised as in training, or the merged model in it."""
    import torch

    from tool_aware.model.adapter import attach_adapter, base_name_of
    from tool_aware.model.base import load_base_model
    from tool_aware.paths import ADAPTER_CONFIG_NAME

    is_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    model: Any = load_base_model(settings.model, settings.quantization, hf_token=hf_token)
    if is_adapter:
        model = attach_adapter(model, folder, base_name=base_name_of(folder)).eval()
        if model.device.type == "cpu" and model.dtype == torch.float32 and settings.quantization.kind == "none":
            model = model.merge_and_unload()  # W + s B A rounds once more, by 1e-7, and takes less time
    return LocalEngine(model, tokenizer, settings, batch_size=batch_size)
