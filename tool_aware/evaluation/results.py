"""The results of one evaluation, ready to be printed, written and drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tool_aware.config.settings import Config
from tool_aware.evaluation.answering.tasks import VAL_CHOICE, Task
from tool_aware.evaluation.baselines_beside import Baselines
from tool_aware.evaluation.judging import (
    REFERENCES,
    calls_of_own_tool,
    judge_all,
    judge_row_by_row,
    reference_answers,
)
from tool_aware.evaluation.scoring.breakdown import Confusion, Part, break_down, top_confusions, worst_rows
from tool_aware.evaluation.scoring.calibration import FEWEST_VAL_ROWS, Calibration, LogScores, calibrate
from tool_aware.evaluation.scoring.code_equality import same_syntax
from tool_aware.evaluation.scoring.earlier_turns import LEFT_OUT, EarlierTurns, with_and_without
from tool_aware.evaluation.scoring.judgement import Judgement, Prediction, SameCode
from tool_aware.evaluation.scoring.metrics import Metrics, summarise
from tool_aware.evaluation.scoring.one_thread import on_one_thread
from tool_aware.evaluation.scoring.passages import Passages
from tool_aware.evaluation.scoring.program_output import ProgramRuns
from tool_aware.evaluation.scoring.reasoning import (
    ReasoningFigures,
    reader_of_reasonings,
    reasoning_figures,
)
from tool_aware.evaluation.scoring.robustness import OnList, Shift, on_lists, shift
from tool_aware.evaluation.scoring.significance import Comparison, compare
from tool_aware.evaluation.scoring.two_requests import TwoRequests, two_requests
from tool_aware.evaluation.scoring.usable import ParameterJudge
from tool_aware.evaluation.scoring.worst_parameters import WorstParameter, worst_parameters
from tool_aware.inference.name_scores import probabilities
from tool_aware.rows import Row
from tool_aware.stage_times import stage
from tool_aware.text import spread_evenly
from tool_aware.tools import Toolbox

MOST_ROWS_AS_PASSAGES = 20_000
TITLES = {
    "base": "base",
    "finetuned": "fine-tuned",
    "base_constrained": "base, constrained",
    "finetuned_constrained": "fine-tuned, constrained",
    "base_choice": "base, choice only",
    "finetuned_choice": "fine-tuned, choice only",
}


@dataclass(frozen=True)
class Results:
    """Predictions, judgements and figures by system; `main` names the one or two systems that are compared."""

    rows: Mapping[int, Row]
    tools: Toolbox
    main: tuple[str, ...]
    predictions: Mapping[str, Sequence[Prediction]]
    judgements: Mapping[str, Sequence[Judgement]]
    metrics: Mapping[str, Metrics]
    comparison: Comparison | None
    against_baselines: list[Comparison]
    calibration: Calibration | None
    parts: list[Part]
    worst: list[Judgement]
    confusions: list[Confusion]
    shifts: Mapping[str, list[Shift]]
    on_lists: Mapping[str, list[OnList]]  # by system: with tools that the adapter was not trained with
    earlier_turns: Mapping[str, list[EarlierTurns]]  # by system; empty where no row shows earlier turns
    two_requests: Mapping[str, TwoRequests]  # by system; empty where no row asks for two things
    reference_reasoning: ReasoningFigures | None  # of the rows' own answers; None where nobody wrote whole answers
    seconds_per_token: Mapping[str, float]
    worst_parameters: list[WorstParameter] = field(default_factory=list)  # of the tuned model, kind by kind
    notes: list[str] = field(default_factory=list)

    @property
    def tuned(self) -> str:
        """Return the name of the system under test."""
        return self.main[-1]

    def reasonings(self) -> dict[str, ReasoningFigures]:
        """Return the figures of reasonings by the system's name for people, those of the references last."""
        found = {title(name): figures.reasoning for name, figures in self.metrics.items() if figures.reasoning}
        return found | ({"the rows' own": self.reference_reasoning} if found and self.reference_reasoning else {})

    def headline(self) -> list[str]:
        """Return the first paragraph: the verdict, the best baseline, and what constrained decoding alone changes."""
        figures = self.metrics[self.tuned]
        sentences = [f"{title(self.tuned)}: tool accuracy {figures.accuracy.percent()} on {figures.rows} rows."]
        if self.comparison:
            sentences = [_sentence(self.comparison.verdict())]
        sentences += [_baseline_sentence(comparison) for comparison in self.against_baselines[:1]]
        forced = self.metrics.get("base_constrained")
        if forced and "base" in self.metrics:
            gain = forced.accuracy.value - self.metrics["base"].accuracy.value
            sentences.append(f"Constrained decoding alone moves the base by {100 * gain:+.1f} points of tool accuracy.")
        return sentences


def title(system: str) -> str:
    """Return a system's name for people."""
    return TITLES.get(system, system)


@on_one_thread()
@stage("judging")
def assemble(
    config: Config,
    test: Mapping[int, Row],
    val: Mapping[int, Row],
    predictions: Mapping[str, Sequence[Prediction]],
    tasks: Sequence[Task],
    *,
    baselines: Baselines,
    train: Sequence[Row] = (),
    same_code: SameCode = same_syntax,
    parameter_judge: ParameterJudge | None = None,
    notes: Sequence[str] = (),
) -> Results:
    """Judge every prediction and compute all figures; which calls are usable, only with `parameter_judge`.

    `baselines` is called, and perhaps waited for, when all else is judged; `train` and `val` have the references from
    which the reader of reasonings learns.
    """
    tools = config.toolbox
    aside = {task.name for task in tasks if task.variant or task.name == VAL_CHOICE}  # compared elsewhere
    systems = {name: answers for name, answers in predictions.items() if name not in aside}
    if parameter_judge:
        with stage("running programs"):
            coding = {tool.name for tool in tools if parameter_judge.takes_programs(tool)}
            parameter_judge.run_programs(calls_of_own_tool(systems.values(), test, tools, coding))
    is_answered = any(answer.text is not None for answers in systems.values() for answer in answers)
    with stage("reading reasonings"):
        read = reader_of_reasonings([*train, *val.values()], tools.names) if is_answered else None
    judgements = judge_all(systems, test, tools, same_code=same_code, parameter_judge=parameter_judge, read=read)
    references = judgements.pop(REFERENCES)
    with stage("rivals"):
        rivals = baselines()
        systems |= rivals
        judgements |= judge_row_by_row(rivals, test, tools, same_code)
    metrics = {
        name: replace(
            summarise_system(name, judged, config),
            reasoning=reasoning_figures(judged, systems[name], seed=config.evaluation.seed),
        )
        for name, judged in judgements.items()
    }
    main = _compared_systems(metrics)

    @stage("comparisons")
    def against(first: str, second: str) -> Comparison:
        names = title(first), title(second)
        return compare(judgements[first], judgements[second], tools.names, names=names, seed=config.evaluation.seed)

    by_accuracy = sorted(rivals, key=lambda name: -metrics[name].accuracy.value)
    return Results(
        rows=test,
        tools=tools,
        main=main,
        predictions=systems,
        judgements=judgements,
        metrics={name: metrics[name] for name in [*(name for name in TITLES if name in metrics), *by_accuracy]},
        comparison=against(*main) if len(main) == 2 else None,
        against_baselines=[against(name, main[-1]) for name in by_accuracy],
        calibration=_calibration(predictions, test, val, config),
        parts=break_down({name: judgements[name] for name in main}, test),
        worst=worst_rows(judgements[main[-1]], _confidence(predictions.get("finetuned_choice", ()))),
        confusions=top_confusions(judgements[main[-1]], test),
        shifts=_shifts(predictions, tasks, test, config),
        on_lists=_on_lists(predictions, tasks),
        earlier_turns=_earlier_turns(predictions, tasks, test, config),
        two_requests=_two_requests(systems, judgements, test, config),
        reference_reasoning=_reference_reasoning(references, test, config) if is_answered else None,
        seconds_per_token=_seconds_per_token(systems),
        worst_parameters=_worst_parameters(systems, judgements, main[-1], test, parameter_judge),
        notes=list(notes),
    )


def parameter_judge_of(config: Config, rows: Mapping[int, Row], programs: ProgramRuns | None) -> ParameterJudge:
    """Return the judge of the rows' parameters: their references and queries are passages beside the shipped ones."""
    tools = config.toolbox
    judge = ParameterJudge(judged_as=config.evaluation.judged_as, programs=programs)
    texts = []
    for row in spread_evenly([*rows.values()], MOST_ROWS_AS_PASSAGES):
        call = row.answer.call
        if call and call.tool in tools and not row.is_choice_only:
            values = judge.search_texts(tools[call.tool], call.parameters)
            texts += [*values, row.query] if values else []
    judge.passages = Passages(texts)
    return judge


def _compared_systems(systems: Collection[str]) -> tuple[str, ...]:
    """Return base and tuned model as far as they answered; where neither did, as far as they chose."""
    for names in (("base", "finetuned"), ("base_choice", "finetuned_choice")):
        if present := tuple(name for name in names if name in systems):
            return present
    raise ValueError(f"neither base nor tuned model among {', '.join(systems)}")


@stage("figures with intervals")
def summarise_system(name: str, judgements: Sequence[Judgement], config: Config) -> Metrics:
    """Compute the figures of one system under the config's settings."""
    settings, tools = config.evaluation, config.toolbox
    no_tool = settings.no_tool if settings.no_tool in tools else None
    return summarise(title(name), judgements, tools.names, no_tool=no_tool, seed=settings.seed)


def _judge(predictions: Sequence[Prediction], rows: Mapping[int, Row], tools: Toolbox) -> list[Judgement]:
    return judge_row_by_row({"": predictions}, rows, tools, same_syntax)[""]


def _worst_parameters(
    systems: Mapping[str, Sequence[Prediction]],
    judgements: Mapping[str, Sequence[Judgement]],
    name: str,
    test: Mapping[int, Row],
    judge: ParameterJudge | None,
) -> list[WorstParameter]:
    return worst_parameters(systems[name], judgements[name], test, judge.passages) if judge else []


def _confidence(choices: Sequence[Prediction]) -> dict[int, float]:
    """Return the probability of the chosen tool for each row."""
    return {choice.row: max(probabilities(choice.scores).values()) for choice in choices if choice.scores}


def _calibration(
    predictions: Mapping[str, Sequence[Prediction]], test: Mapping[int, Row], val: Mapping[int, Row], config: Config
) -> Calibration | None:
    on_test, on_val = predictions.get("finetuned_choice"), predictions.get(VAL_CHOICE)
    if not on_test or not on_val or len(on_val) < FEWEST_VAL_ROWS:
        return None
    settings = config.evaluation
    return calibrate(
        *_scored(on_val, val),
        *_scored(on_test, test),
        costs=settings.costs,
        wanted_precision=settings.wanted_precision,
    )


def _scored(choices: Sequence[Prediction], rows: Mapping[int, Row]) -> tuple[list[LogScores], list[Row]]:
    """Return the scores of choices and the rows that they are of."""
    scored = [(choice.scores, rows[choice.row]) for choice in choices if choice.scores]
    return [scores for scores, _ in scored], [row for _, row in scored]


def _shifts(
    predictions: Mapping[str, Sequence[Prediction]], tasks: Sequence[Task], test: Mapping[int, Row], config: Config
) -> dict[str, list[Shift]]:
    """Compute, for base and tuned, how far each variant of the prompt moves the figures of the same rows."""
    shifts: dict[str, list[Shift]] = {}
    for task in tasks:
        if not task.variant or task.list_name or task.variant == LEFT_OUT or task.name not in predictions:
            continue
        system = task.system
        plain = [p for p in predictions[f"{system}_choice"] if p.row in task.rows]
        before, after = (_judge(group, test, config.toolbox) for group in (plain, predictions[task.name]))
        shifts.setdefault(system, []).append(
            shift(
                task.variant,
                (summarise_system(system, before, config), before),
                (summarise_system(system, after, config), after),
            )
        )
    return shifts


def _earlier_turns(
    predictions: Mapping[str, Sequence[Prediction]], tasks: Sequence[Task], test: Mapping[int, Row], config: Config
) -> dict[str, list[EarlierTurns]]:
    """Compare, for base and tuned, the choices for rows of a conversation with and without their earlier turns."""
    compared = {}
    for task in tasks:
        if task.variant == LEFT_OUT and task.name in predictions:
            shown = [p for p in predictions[f"{task.system}_choice"] if p.row in task.rows]
            with_, without = (_judge(group, test, config.toolbox) for group in (shown, predictions[task.name]))
            compared[task.system] = with_and_without(test, with_, without, seed=config.evaluation.seed)
    return compared


def _two_requests(
    systems: Mapping[str, Sequence[Prediction]],
    judgements: Mapping[str, Sequence[Judgement]],
    test: Mapping[int, Row],
    config: Config,
) -> dict[str, TwoRequests]:
    """Return what each system does with queries that ask for two things."""
    found = {
        name: two_requests(test, systems[name], judgements[name], seed=config.evaluation.seed)
        for name in TITLES
        if name in systems
    }
    return {name: figures for name, figures in found.items() if figures}


def _reference_reasoning(
    judged: Sequence[Judgement], test: Mapping[int, Row], config: Config
) -> ReasoningFigures | None:
    """Return the figures of the reasonings of the rows' own answers, for contrast."""
    answers = reference_answers([judgement.row for judgement in judged], test)
    return reasoning_figures(judged, answers, seed=config.evaluation.seed)


def _on_lists(predictions: Mapping[str, Sequence[Prediction]], tasks: Sequence[Task]) -> dict[str, list[OnList]]:
    """Compute, for base and tuned, the right choices among tools that the adapter was not trained with."""
    answered: dict[str, list[tuple[str, Mapping[int, Row], Sequence[Prediction]]]] = {}
    for task in tasks:
        if task.list_name and task.name in predictions:
            answered.setdefault(task.system, []).append((task.list_name, task.rows, predictions[task.name]))
    return {system: on_lists(items) for system, items in answered.items()}


def _seconds_per_token(systems: Mapping[str, Sequence[Prediction]]) -> dict[str, float]:
    totals = {
        name: (sum(p.seconds for p in group), sum(p.new_tokens for p in group)) for name, group in systems.items()
    }
    return {name: seconds / tokens for name, (seconds, tokens) in totals.items() if seconds and tokens}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _baseline_sentence(comparison: Comparison) -> str:
    """Write whether the best baseline chooses as well as the tuned model."""
    test, difference = comparison.tool_choice, comparison.accuracy_difference
    gap = f"{100 * difference.value:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    if test.conclusion == "better":
        return f"The best baseline, {comparison.first}, chooses worse: {gap} in favour of {comparison.second}."
    if test.conclusion == "worse":
        return f"At choosing, the baseline {comparison.first} wins over {comparison.second}: {gap}."
    return f"At choosing, the baseline {comparison.first} does as well as {comparison.second} ({gap}) at this size."
