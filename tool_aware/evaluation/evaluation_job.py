"""One evaluation: what was asked for, the files that it reads, and the tasks that follow from both."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.options import ConfigOptions
from tool_aware.config.sections import ModelSection
from tool_aware.config.settings import Config, load_config
from tool_aware.console import Fallbacks, UserError
from tool_aware.data_folder import DataReading
from tool_aware.evaluation.answering.predictions import PredictionLog
from tool_aware.evaluation.answering.tasks import Plan, Task, origin_of, plan_tasks
from tool_aware.evaluation.gates import Gates, parse_gates
from tool_aware.evaluation.held_out import TestSet, load_test_set, refuse_rows_trained_on
from tool_aware.evaluation.offered_now import readable_tools, with_tools_of_now
from tool_aware.evaluation.preflight import (
    check_adapter,
    check_merged_model,
    check_results_folder,
    check_weights,
    limitations,
)
from tool_aware.evaluation.scoring.program_output import ProgramRuns
from tool_aware.evaluation.scoring.robustness import Variant, make_variants
from tool_aware.evaluation.tool_changes import Earlier, earlier_tools, warning_of
from tool_aware.files import sha256_of
from tool_aware.inference.constrained import AnswerGrammar, readable_schemas
from tool_aware.inference.grammar_check import check_references
from tool_aware.library_imports import import_libraries
from tool_aware.paths import ADAPTER_FOLDER, ADAPTER_WEIGHTS_NAME, MANIFEST_NAME, PREDICTIONS_FOLDER
from tool_aware.sandbox import NotIsolated, check_isolation
from tool_aware.secret_values import without_login

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_NOT_RUN = "answered programs are not run ({}): calls with one are usable only if it is the reference's, by syntax tree"
_LIBRARIES = ("torch", "transformers", "peft")  # that answering on this machine takes
_RESULTS_DIR = "evaluation.results_dir="  # as --set takes it


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """The command line of evaluate.py, one field an option; its `--help` explains each."""

    adapter: Path | None
    model: Path | None
    endpoint: str | None
    predictions: Path | None
    served_model: str | None
    served_base: str | None
    concurrency: int
    limit: int | None
    choice_only: bool
    no_constrained: bool
    no_robustness: bool
    run_code: bool
    run_unisolated: bool
    no_run_code: bool
    min: list[str]
    max_drop: list[str]
    require_significant: bool
    overwrite: bool
    dry_run: bool

    @property
    def is_local(self) -> bool:
        """Return whether the models run here; else a server or a file gives their answers."""
        return not (self.endpoint or self.predictions)

    def served_name(self, task: Task) -> str | None:
        """Return the server's name for the model of a task."""
        return self.served_model if task.uses_adapter else self.served_base


@dataclass(frozen=True)
class Job:
    """Everything that one run of evaluate.py needs, read and checked."""

    options: Options
    config: Config
    environment: Environment
    test: TestSet
    adapter: Path | None
    gates: Gates
    tasks: list[Task]
    limitations: list[str]  # why its figures say less than they could
    trained_with: Earlier | None = None  # the tools of the model's training, if they are known
    programs: ProgramRuns | None = None  # where answered programs are run; None where they are not
    tokenizer: PreTrainedTokenizerBase | None = None  # of the model that is loaded here, if one is
    fallbacks: Fallbacks = field(default_factory=Fallbacks)
    inputs: dict[str, str] = field(default_factory=dict)  # sha256 of what is read besides the data, by path
    served: dict[str, Any] = field(default_factory=dict)  # what a server says of itself, by the name of a model there

    @cached_property
    def adapter_sha256(self) -> str | None:
        """Return the sha256 of the adapter's weights; None without an adapter."""
        return sha256_of(self.adapter / ADAPTER_WEIGHTS_NAME) if self.adapter else None

    @cached_property
    def results_dir(self) -> Path:
        """Return the folder of the results: that of the settings, and beside it for a merged model and for answers from
        elsewhere.

        So the evaluation of base and adapter stays. A folder that the command line names is taken as it is.
        """
        folder, options = self.config.evaluation.results_dir, self.options
        if any(item.replace(" ", "").startswith(_RESULTS_DIR) for item in options.overrides):
            return folder
        source = options.model.resolve().name if options.model else options.served_model if options.endpoint else None
        source = options.predictions.stem if options.predictions else source
        if source is None:
            return folder
        name = re.sub(r"[^\w.-]+", "-", source).strip("-.") or "endpoint"
        return folder.with_name(f"{folder.name}_{name}")

    @property
    def answered_by(self) -> str | None:
        """Return, in words, who gave the fine-tuned model's answers; None for a model on this machine."""
        if self.options.predictions:
            return f"The fine-tuned model's answers are those of {self.options.predictions}."
        if not self.options.endpoint:
            return None
        name = self.options.served_model or ""
        details = "; ".join(f"{key} {value}" for key, value in self.served.get(name, {}).items() if key != "id")
        server = f"{without_login(self.options.endpoint)}, which serves it as {name}"
        return f"The fine-tuned model's answers are those of {server}{f' ({details})' if details else ''}."

    @property
    def is_as_trained(self) -> bool:
        """Return whether the tools are those that the model was trained with, as far as is known."""
        return not (self.trained_with and self.trained_with.change)

    @cached_property
    def partial(self) -> list[str]:
        """Return the options that make this a part of an evaluation; none for a whole one."""
        limit = [] if self.test.is_whole else [f"--limit {self.options.limit}"]
        return [*(["--choice-only"] if self.options.choice_only else []), *limit]

    @property
    def model(self) -> ModelSection:
        """Return the model that is loaded here: the base, or a merged one."""
        merged = {"name": str(self.options.model), "revision": None} if self.options.model else {}
        return self.config.model.model_copy(update=merged)

    @property
    def loads_model(self) -> bool:
        """Return whether there is something that only a model on this machine can answer."""
        return any(map(self.is_due, self.tasks))

    @property
    def is_answered_elsewhere(self) -> bool:
        """Return whether a GPU or a server answers rows, and leaves this machine's cores to others."""
        if self.options.endpoint or not self.tokenizer:  # which only a job that loads a model has
            return self.options.endpoint is not None
        import torch

        return torch.cuda.is_available()

    def is_due(self, task: Task) -> bool:
        """Return whether a model on this machine has rows of `task` to answer."""
        if not (self.options.is_local and self.computes(task)):
            return False
        return self.options.overwrite or bool(task.rows.keys() - self.log(task).done.keys())

    def computes(self, task: Task) -> bool:
        """Return whether this run's engine does `task`; other answers can only come from an earlier run."""
        if self.options.predictions:
            return False
        if self.options.endpoint:
            return self.options.served_name(task) is not None
        return task.uses_adapter or not self.options.model

    def check_results_folder(self) -> None:
        """Raise UserError if the results must not be written where the config says."""
        is_replaced = self.options.overwrite
        check_results_folder(self.results_dir, self.test, self.partial, overwrite=is_replaced)

    def log(self, task: Task, says: dict[str, Any] | None = None) -> PredictionLog:
        """Return the answers that earlier runs left for `task`, if they came from the same data, model and settings.

        `says` is what a server says of itself now; it must have said the same then. None leaves that open.
        """
        is_earlier_base = not task.uses_adapter and not self.computes(task)
        is_merged = self.options.model is not None and task.uses_adapter
        engine: dict[str, Any] = {}
        if self.options.endpoint and not is_earlier_base:
            engine = {"endpoint": without_login(self.options.endpoint), "served": self.options.served_name(task)}
            engine |= {"says": says} if says is not None else {}
        origin = origin_of(
            task,
            self.test,
            self.config,
            model=str(self.options.model) if is_merged else self.config.model.name,
            adapter=self.adapter_sha256 if task.uses_adapter else None,
            **engine,
        )
        folder = self.config.evaluation.results_dir if is_earlier_base else self.results_dir
        path = folder / PREDICTIONS_FOLDER / f"{task.name}.jsonl"
        # An earlier base may have been quantised where this engine's model is not: it is still the model to beat.
        ignored = ("quantization",) if is_earlier_base else ("says",) if says is None else ()
        return PredictionLog(path, origin, ignored=ignored, tools=tuple(task.real_names.values()))


def prepare(options: Options) -> Job:
    """Read and check everything that can be wrong, and list what has to be computed. Raises UserError."""
    config, environment = load_config(options.config, options.overrides), read_environment()
    programs, about_programs = _programs(options)
    earlier = _earlier_tools(options, config)
    tools = readable_tools(config, earlier)
    reading = DataReading(config.dataset.dir, tools, ["test"])
    is_first = options.overwrite or not (config.evaluation.results_dir / MANIFEST_NAME).is_file()
    if reading.is_beside and options.is_local and is_first:  # else all may be answered already
        import_libraries(*_LIBRARIES)
    test = load_test_set(config.dataset.dir, tools, limit=options.limit, reading=reading)
    gates = parse_gates(options.min, options.max_drop, options.require_significant, config.toolbox.names)
    adapter = _checked_adapter(options, config, test)
    test, offered = with_tools_of_now(test, config, earlier, adds_examples=not options.predictions)
    tasks = _tasks(options, config, test)
    notes = limitations(config, test, is_merged=options.model is not None) + offered
    trained = _trained_with(options, config)
    if trained and trained.change:
        notes.append(warning_of(_model_folder(options, config), trained))
    if any(task.kind == "constrained" for task in tasks):
        notes += readable_schemas(config.toolbox).notes
    notes += [about_programs] if about_programs else []
    job = Job(options, config, environment, test, adapter, gates, tasks, notes, trained, programs)
    job.check_results_folder()
    if job.loads_model:
        import_libraries(*_LIBRARIES)
        tokenizer = check_weights(job.model, adapter, hf_token=environment.hf_token)
        job = replace(job, tokenizer=tokenizer)
        constrained = [task for task in tasks if task.kind == "constrained" and job.is_due(task)]
        if constrained:
            grammar = AnswerGrammar(tokenizer, config.toolbox)
            notes += check_references(grammar, tokenizer, test.rows, path=str(test.path))
    return job


def _programs(options: Options) -> tuple[ProgramRuns | None, str | None]:
    """Return where answered programs are run, None if nowhere, and what a reader of the figures has to know of it.

    Raises UserError if they cannot be isolated here and the command line asks for them all the same, isolated.
    """
    if options.no_run_code or options.choice_only:
        return None, _NOT_RUN.format("--no-run-code") if options.no_run_code else None
    try:
        check_isolation()
    except NotIsolated as error:
        if options.run_unisolated:
            about = f"{error.what}; they are run with this user's rights to files, network and secrets"
            return ProgramRuns(is_isolated=False), about
        if not options.run_code:
            return None, _NOT_RUN.format(error.what)
        fix = "leave --run-code out; --run-unisolated runs them with this user's rights to files, network and secrets"
        raise UserError(error.what, where="--run-code", fix=fix) from error
    return ProgramRuns(), None


def _checked_adapter(options: Options, config: Config, test: TestSet) -> Path | None:
    """Check the model under test and return its adapter; None for a merged model, or where a server has its own."""
    if options.model:
        check_merged_model(options.model)
        refuse_rows_trained_on(test, options.model)
        return None
    adapter = _model_folder(options, config)
    if not options.is_local:
        return adapter if adapter.is_dir() else None  # only its probe is of use
    check_adapter(config, adapter)
    refuse_rows_trained_on(test, adapter)
    return adapter


def _model_folder(options: Options, config: Config) -> Path:
    return options.model or options.adapter or config.training.output_dir / ADAPTER_FOLDER


def _trained_with(options: Options, config: Config) -> Earlier | None:
    """Return the tools that the model under test was trained with; None if that is not known."""
    if not options.is_local:
        return None
    return earlier_tools(_model_folder(options, config).resolve().parent, config, stage="train")


def _earlier_tools(options: Options, config: Config) -> list[Earlier]:
    """Return the tools that the data was made for, and those of the training, as far as they are known."""
    made_for = earlier_tools(config.dataset.dir, config, stage="prepare_dataset")
    return [earlier for earlier in (made_for, _trained_with(options, config)) if earlier]


def _variants(config: Config, test: TestSet) -> list[Variant]:
    settings = config.evaluation
    return make_variants(test.rows, config.toolbox, seed=settings.seed, no_tool=settings.no_tool)


def _tasks(options: Options, config: Config, test: TestSet) -> list[Task]:
    is_reworded = not options.no_robustness
    variants = _variants(config, test) if is_reworded else []
    plan = Plan(
        answers=not options.choice_only,
        constrained=options.is_local and not options.choice_only and not options.no_constrained,
        choices=options.is_local,
    )
    return plan_tasks(plan, test.rows, test.val if options.is_local else {}, config.toolbox, variants)
