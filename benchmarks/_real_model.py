"""Shared by the benchmarks of quality: one run, what it is given, and what it finds.

A run trains an adapter as train_tool_aware.py does, saves it, loads it as evaluate.py does, and lets it choose tools
and write whole answers.
"""

from __future__ import annotations

import gc
import pickle
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _follow_ups import chose_second, what_remains
from _random_mistral import peaks, synchronised

from tool_aware.chat_format import EncodedExample, encode_example, with_heavy_name
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks
from tool_aware.evaluation.scoring.judgement import Judgement, Prediction
from tool_aware.rows import Row

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from tool_aware.training.step_outcome import StepOutcome
    from tool_aware.training.varied_lists import StepExamples

PROBE = "probe"  # source of hand-written rows, of which only the tool is known
NEVER = 10**9  # steps between checkpoints
# Activations are kept and nothing is chosen by what is free: several runs share the card.
SHARED_CARD = {"optimization.gradient_checkpointing": False, "optimization.micro_batch": "fixed"}


@dataclass(frozen=True)
class Run:
    """What one process does. `stack` is base (no training), ours, ours-checkpoints, trl or
    trl-no-checkpoints.

    `rows` are drawn from the training rows, the same number of every tool; None = all. `answers` names the sets that
    whole answers are written for. `alone` runs have the card for themselves, so their time and memory count.
    """

    name: str
    stack: str = "ours"
    seed: int = 1
    rows: int | None = None
    epochs: float = 1.0
    steps: int | None = None  # instead of epochs
    batch: int = 32
    learning_rate: float = 1e-3
    r: int = 16
    alpha: float = 32.0
    tool_variation: float = 0.0
    tool_weight: float = 1.0
    answers: tuple[str, ...] = ()
    lists: str = ""  # name of the set that other lists of tools are tried on
    alone: bool = False
    taught: str = ""  # name of the training rows, of those that differ from `train`
    adapter: str = ""  # folder of a trained adapter that answers as it is, with the stack base: nothing is trained

    @property
    def settings(self) -> dict[str, Any]:
        """Return the values of config.yaml that differ."""
        return {
            "training.seed": self.seed,
            "training.num_train_epochs": self.epochs,
            "training.max_steps": self.steps,
            "training.per_device_train_batch_size": self.batch,
            "training.gradient_accumulation_steps": 1,
            "training.learning_rate": self.learning_rate,
            "training.tool_variation": self.tool_variation,
            "training.tool_weight": self.tool_weight,
            "training.save_steps": NEVER,
            "lora.r": self.r,
            "lora.alpha": self.alpha,
            **({} if self.alone else SHARED_CARD),
        }


@dataclass(frozen=True)
class Material:
    """What all runs of a benchmark share: settings with the model's folder, training rows, and the sets of test rows.

    `batch_size` is that of answering; `other_train` holds the training rows of runs that have others.
    """

    config: Config
    train: Sequence[Row]
    tests: Mapping[str, Sequence[Row]]
    batch_size: int = 256
    other_train: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it where the runs' processes read it."""
        path.write_bytes(pickle.dumps(self))

    @staticmethod
    def load(path: Path) -> Material:
        """Read what `save` wrote, in a process that this benchmark started."""
        material = pickle.loads(path.read_bytes())
        assert isinstance(material, Material)
        return material


Score = Callable[["Answerer", Material, "Outcome"], None]  # fills the sets of the outcome


@dataclass
class Outcome:
    """What a run found. `sets` holds, by name of the test rows, a string of 0 and 1 for each question, in row order.

    Questions: choice (the right tool is the most probable one), tool (the whole answer calls the right tool), readable,
    schema (the call fits the tool's schema), call (tool and parameters are right). Of sets with queries that ask for
    two things also choice_second and second (the tool of the other request was chosen), and those of `what_remains`.
    """

    run: dict[str, Any]
    train_rows: int = 0
    steps: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, dict[str, str]] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    scoring_s: float = 0.0
    answers: dict[str, Any] = field(default_factory=dict)  # of benchmarks that keep whole answers


# ---- one run --------------------------------------------------------------------------------------------


def perform(run: Run, material: Material, folder: Path, score: Score) -> Outcome:
    """Train as `run` says, then `score` base or adapter; `folder` takes the adapter."""
    from tool_aware.tokenizer import load_tokenizer
    from tool_aware.training.varied_lists import StepExamples

    config = material.config.with_settings({**run.settings, "training.output_dir": folder / run.name})
    tokenizer = load_tokenizer(config.model.name)
    outcome, adapter = Outcome(asdict(run)), Path(run.adapter) if run.adapter else None
    if run.stack != "base":
        rows = drawn(material.other_train[run.taught] if run.taught else material.train, run.rows, run.seed)
        examples = [
            with_heavy_name(
                tokenizer, encode_example(tokenizer, row.instruction, row.response), row.tool, run.tool_weight
            )
            for row in rows
        ]
        outcome.train_rows, adapter = len(rows), folder / run.name / "adapter"
        if run.stack.startswith("trl"):
            train_with_trl(config, examples, tokenizer, adapter, outcome)
        else:
            varied = StepExamples.of(config, rows, examples, tokenizer)
            train_with_toolkit(config, examples, tokenizer, adapter, outcome, varied=varied)
        if not run.alone:
            outcome.training = {"losses": outcome.training["losses"]}
        free()
    began_s = time.monotonic()
    fallbacks = Fallbacks()
    score(answerer_of(config, tokenizer, adapter, material.batch_size, fallbacks), material, outcome)
    outcome.fallbacks += list(fallbacks)
    outcome.scoring_s = round(time.monotonic() - began_s, 1)
    return outcome


def drawn(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """Return `count` rows drawn by seed, as many of each tool as can be; all rows if there are no more."""
    if count is None or count >= len(rows):
        return list(rows)
    generator = random.Random(f"{seed}/rows")
    by_tool: dict[str, list[Row]] = {}
    for row in rows:
        by_tool.setdefault(row.tool, []).append(row)
    for part in by_tool.values():
        generator.shuffle(part)
    taken: list[Row] = []
    while len(taken) < count:
        taken += [part.pop() for part in by_tool.values() if part]
    return taken[:count]


def train_with_toolkit(
    config: Config,
    examples: list[EncodedExample],
    tokenizer: PreTrainedTokenizerBase,
    adapter: Path,
    outcome: Outcome,
    *,
    varied: StepExamples | None,
) -> None:
    """Train as train_tool_aware.py does, without scorings of val.json and checkpoints."""
    import torch

    from tool_aware.model.adapter import new_adapter, prepare_for_training
    from tool_aware.model.base import load_base_model
    from tool_aware.training.choice import ToolNames
    from tool_aware.training.gpu_plan import plan_memory
    from tool_aware.training.loop import TrainingLoop

    if outcome.run["stack"] == "ours-checkpoints":
        config = config.with_settings({**SHARED_CARD, "optimization.gradient_checkpointing": True})
    elif outcome.run["alone"]:
        config = plan_memory(config, examples, 1, varied).apply(config)
    config = config.settled()
    model = new_adapter(load_base_model(config.model, config.quantization), config)
    prepare_for_training(model, config)
    losses: list[tuple[int, float]] = []

    class Loop(TrainingLoop):
        def _log(self, outcome: StepOutcome) -> None:  # of a step, not of the run
            losses.append((outcome.step, outcome.loss / self._steps_since_log))
            self._loss_since_log.zero_()
            self._steps_since_log = 0

        def save(self) -> None:
            """Write no checkpoint: the adapter is saved below."""

    names = ToolNames.of(tokenizer, config.toolbox)
    of_step = varied.of_step if varied else None
    loop = Loop(model, config, train=examples, val=[], tool_names=names, tracker=None, run={}, varied=of_step)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began_s = synchronised()
    loop.run()
    outcome.training = figures(synchronised() - began_s, loop.schedule.steps, config, len(examples), losses)
    outcome.training["decoder"] = "own" if loop.micro_step.decoder else "transformers"
    outcome.steps = loop.step
    outcome.fallbacks += list(loop.fallbacks)
    save_adapter(model, adapter)


def train_with_trl(
    config: Config, examples: list[EncodedExample], tokenizer: PreTrainedTokenizerBase, adapter: Path, outcome: Outcome
) -> None:
    """Train on the same token ids, labels, order, steps and learning rates with TRL's SFTTrainer."""
    from _trl import train

    has_checkpoints = outcome.run["stack"] != "trl-no-checkpoints"
    found = train(config, examples, tokenizer, adapter.parent / "trl", has_checkpoints=has_checkpoints)
    seconds, losses, outcome.steps, model = found
    outcome.training = figures(seconds, outcome.steps, config, len(examples), losses)
    save_adapter(model, adapter)


def figures(
    seconds: float, steps: int, config: Config, rows: int, losses: Sequence[tuple[int, float]]
) -> dict[str, Any]:
    """Return time, speed, memory and losses of a training; time and memory mean something for a run alone only."""
    batch = config.training.effective_batch
    whole, rest = divmod(steps, -(-rows // batch))
    examples = whole * rows + rest * batch
    return {
        "seconds": round(seconds, 2),
        "examples": examples,
        "examples_per_s": round(examples / seconds, 1),
        "losses": [(step, round(loss, 4)) for step, loss in losses],
        **peaks(),
    }


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter alone."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), save_embedding_layers=False)


def free() -> None:
    """Free the memory of what is no longer referenced."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- scoring --------------------------------------------------------------------------------------------


def answerer_of(
    config: Config, tokenizer: PreTrainedTokenizerBase, adapter: Path | None, batch_size: int, fallbacks: Fallbacks
) -> Answerer:
    """Load the base model, with an adapter if there is one, as evaluate.py does."""
    from tool_aware.model.adapter import attach_adapter
    from tool_aware.model.base import load_base_model

    base = load_base_model(config.model, config.quantization)
    if adapter:
        attach_adapter(base, adapter, base_name=config.model.name).eval()
    return Answerer(base.eval(), tokenizer, config, batch_size, fallbacks)


def score_choices(answerer: Answerer, material: Material, outcome: Outcome) -> None:
    """Choose and answer as evaluate.py does, and judge by its rules."""
    from tool_aware.evaluation.scoring.judgement import judge

    config = answerer.config
    for name, rows in material.tests.items():
        chosen = [judge(found, rows[found.row], config.toolbox) for found in answerer.choices(rows)]
        second = {f"choice_{question}": found for question, found in chose_second(rows, chosen).items()}
        outcome.sets[name] = {"choice": flags(chosen, lambda j: j.is_tool_right), **second}
        if name in outcome.run["answers"]:
            answers = answerer.answers(rows)
            judged = [judge(found, rows[found.row], config.toolbox) for found in answers]
            outcome.sets[name] |= {
                "tool": flags(judged, lambda j: j.is_tool_right),
                "readable": flags(judged, lambda j: j.is_parsed),
                "schema": flags(judged, lambda j: j.fits_schema),
            }
            if rows[0].metadata["source"] != PROBE:  # those have no right call to compare with
                outcome.sets[name]["call"] = flags(judged, lambda j: j.is_call_correct)
            outcome.sets[name] |= chose_second(rows, judged) | what_remains(answerer, rows, answers)
    if outcome.run["lists"]:
        score_lists(answerer, material.tests[outcome.run["lists"]], config, outcome)


def score_lists(answerer: Answerer, rows: Sequence[Row], config: Config, outcome: Outcome) -> None:
    """Choose from other lists of tools, as evaluate.py's variants have them."""
    from tool_aware.evaluation.scoring.robustness import OF_LIBRARY, make_variants

    no_tool = config.evaluation.no_tool
    for variant in make_variants(dict(enumerate(rows)), config.toolbox, seed=config.evaluation.seed, no_tool=no_tool):
        for asked in ("test rows", "library"):
            numbers = [number for number in variant.rows if (number >= OF_LIBRARY) == (asked == "library")]
            if not numbers:
                continue
            found = answerer.choices([variant.rows[number] for number in numbers], variant.tools.names)
            chosen = [variant.real_names[prediction.tool or ""] for prediction in found]
            right = [rows[number] if variant.is_same else variant.rows[number] for number in numbers]
            marks = ("1" if tool in row.acceptable_tools else "0" for tool, row in zip(chosen, right, strict=True))
            kept = outcome.sets.setdefault(f"{variant.list_name or variant.name}, {asked}", {"choice": ""})
            kept["choice"] += "".join(marks)


def flags(judgements: Sequence[Judgement], question: Callable[[Judgement], bool | None]) -> str:
    """Return the answers to a question as 0 and 1."""
    return "".join("1" if question(judgement) else "0" for judgement in judgements)


@dataclass(frozen=True)
class Answerer:
    """Predictions of a model in memory, in row order; the calls are those of evaluate.py's local model."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    config: Config
    batch_size: int
    fallbacks: Any

    def choices(self, rows: Sequence[Row], tools: Sequence[str] = ()) -> list[Prediction]:
        """Return the most probable tool of each row, of those configured unless `tools` names others."""
        from tool_aware.chat_format import tool_label_tokens, tool_name_tokens
        from tool_aware.inference.name_scores import score_names

        label = tool_label_tokens(self.tokenizer)
        names = tool_name_tokens(self.tokenizer, tools or self.config.toolbox.names)
        prompts = [prompt + label for prompt in self._prompts(rows)]
        batches = score_names(self.model, prompts, names, batch_size=self.batch_size)
        found = [Prediction(row, tool=max(scores, key=scores.__getitem__)) for part in batches for row, scores in part]
        return sorted(found, key=lambda prediction: prediction.row)

    def answers(self, rows: Sequence[Row], tools: Sequence[str] = ()) -> list[Prediction]:
        """Return the whole answer of each row; with `tools`, one a row, the one that begins with `Tool: <its tool>`."""
        from tool_aware.chat_format import decode, end_id, tool_label_tokens, tool_name_tokens
        from tool_aware.inference.generation import generate

        label, names = tool_label_tokens(self.tokenizer), tool_name_tokens(self.tokenizer, set(tools))
        begun = [[*label, *names[tool]] for tool in tools] or [[]] * len(rows)
        batches = generate(
            self.model,
            [prompt + ids for prompt, ids in zip(self._prompts(rows), begun, strict=True)],
            eos_id=end_id(self.tokenizer),
            max_new_tokens=self.config.evaluation.max_new_tokens,
            batch_size=self.batch_size,
            fallbacks=self.fallbacks,
        )
        found = [
            Prediction(row, decode(self.tokenizer, begun[row] + answer.ids), is_truncated=answer.is_truncated)
            for part in batches
            for row, answer in part
        ]
        return sorted(found, key=lambda prediction: prediction.row)

    def _prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        from tool_aware.chat_format import encode_prompt

        return [encode_prompt(self.tokenizer, row.instruction) for row in rows]
