"""The answers to all tasks of a job: from the models, from a server, from a file, or from an earlier run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection

from tool_aware.console import UserError, duration, heading, say
from tool_aware.evaluation.answering.endpoint import Endpoint, is_unknown
from tool_aware.evaluation.answering.local_model import LocalModel
from tool_aware.evaluation.answering.predictions import PredictionLog, read_answers
from tool_aware.evaluation.answering.probe import ProbeItem, run_probe
from tool_aware.evaluation.answering.tasks import Task
from tool_aware.evaluation.evaluation_job import Job
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.files import read_as, sha256_of
from tool_aware.model.adapter import attach_adapter
from tool_aware.model.base import load_base_model
from tool_aware.paths import ADAPTER_WEIGHTS_NAME, PROBE_NAME
from tool_aware.prompt import COMMON_CONTROLS, escape_controls
from tool_aware.stage_times import stage
from tool_aware.tokenizer import control_tokens_in, load_tokenizer

_ANSWERING = {"free": "answering", "constrained": "answering under the grammar", "choice": "choosing"}  # by kind

Answers = dict[str, list[Prediction]]  # by the name of the task, in the order of its rows


def collect_answers(job: Job) -> Answers:
    """Return the answers to every task, from the engine that was asked for."""
    if job.options.predictions:
        digest = hashlib.sha256()
        given = read_answers(job.options.predictions, job.test.total, job.fallbacks, digest)
        job.inputs[str(job.options.predictions)] = digest.hexdigest()
        return {**known_answers(job, "base"), "finetuned": [given[index] for index in job.test.rows]}
    return ask_server(job, job.options.endpoint) if job.options.endpoint else run_models(job)


def known_answers(job: Job, system: str) -> Answers:
    """Return the whole answer sets of `system` that earlier runs left."""
    answers = {}
    for task in job.tasks:
        log = job.log(task)
        if task.system == system and task.rows.keys() <= log.done.keys():
            answers[task.name] = [log.done[index] for index in task.rows]
    if not answers:
        job.fallbacks.add(f"no answers of {system} from an earlier run on these rows: no comparison")
    return answers


# ---- models on this machine -------------------------------------------------------------------------------


def run_models(job: Job) -> Answers:
    """Do the tasks with one load of the model; load nothing if all answers are known."""
    answers, local = known_answers(job, "base") if job.options.model else {}, None
    for task in filter(job.computes, job.tasks):
        log = job.log(task)
        if task.rows.keys() <= log.done.keys():
            answers[task.name] = [log.done[index] for index in task.rows]
            continue
        local = local or load(job)
        begun_s = time.monotonic()
        with stage(_ANSWERING[task.kind]):
            answers[task.name] = local.run(task, log)
        say(f"{task.name}: {len(task.rows)} rows, {duration(time.monotonic() - begun_s)}")
    return answers


@stage("loading the model")
def load(job: Job) -> LocalModel:
    """Load the base model with the adapter on it, or a merged model."""
    config, model, token = job.config, job.model, job.environment.hf_token
    heading(f"Loading {model.name}")
    tokenizer = job.tokenizer or load_tokenizer(model.name, revision=model.revision, token=token)
    base = load_base_model(model, config.quantization, hf_token=token)
    adapter = attach_adapter(base, job.adapter, base_name=config.model.name).eval() if job.adapter else None
    if job.adapter and job.adapter_sha256:
        weights = job.adapter / ADAPTER_WEIGHTS_NAME
        if sha256_of(weights) != job.adapter_sha256:
            raise UserError("was replaced while it was being read", where=str(weights), fix="run this again")
        job.inputs[str(weights)] = job.adapter_sha256
    heading("Answering")
    return LocalModel(base.eval(), adapter, tokenizer, config.evaluation, job.fallbacks, model.max_seq_length)


# ---- a server ---------------------------------------------------------------------------------------------


def ask_server(job: Job, url: str) -> Answers:
    """Return the server's answers, after checking that it is not the base model that answers."""
    answers = {} if job.options.served_base else known_answers(job, "base")
    controls = (control_tokens_in(job.adapter) if job.adapter else None) or COMMON_CONTROLS
    note_escapes(job, controls)
    for task in job.tasks:
        name = job.options.served_name(task)
        if name is None:
            continue
        endpoint = Endpoint(
            url,
            name,
            job.config.evaluation.max_new_tokens,
            job.options.concurrency,
            job.environment.openai_api_key,
            controls,
        )
        endpoint.check()
        if task.uses_adapter:
            check_applied_adapter(job, endpoint)
        log = earlier_answers(job, task, endpoint)
        answers[task.name] = endpoint.answer_rows(task.rows, log, job.fallbacks)
    return answers


def earlier_answers(job: Job, task: Task, endpoint: Endpoint) -> PredictionLog:
    """Return the log of the answers that this server has given to a task; warn where earlier ones are left out.

    Another model may answer at the same address and under the same name. So a server has to say the same of itself as
    then, and to repeat some of the answers. If it says nothing by which it could be known, a finished set is asked
    again; one that was cut off is continued.
    """
    says = job.served[endpoint.served_name] = endpoint.identity()
    log, before = job.log(task, says), len(job.log(task).done)
    if not before:
        return log
    if not log.done:
        reason = "the server says something else of itself than it did then"
    elif differing := endpoint.answered_otherwise(task.rows, log):
        reason = f"the server gives another answer to row {differing[0]} now"
    elif is_unknown(says) and task.rows.keys() <= log.done.keys():
        reason = "the server says nothing by which it could be told from another"
    else:
        return log
    log.done.clear()
    job.fallbacks.add(f"{before} earlier answers of {endpoint.served_name} are not used again: {reason}")
    return log


def note_escapes(job: Job, controls: Collection[str]) -> None:
    """Warn of rows whose text is changed on the way to a server, which would read control tokens in it as such."""
    changed = [index for index, row in job.test.rows.items() if escape_controls(row.query, controls) != row.query]
    if changed:
        job.fallbacks.add(
            f"control tokens in the queries of {len(changed)} rows (row {changed[0]} is the first) are sent with a "
            "space in them, as text: the server would take them for the ends of turns"
        )


def check_applied_adapter(job: Job, endpoint: Endpoint) -> None:
    """Run the probe beside the adapter. Raises UserError if the server answers as the base model does."""
    probe = read_as(job.adapter / PROBE_NAME, list[ProbeItem]) if job.adapter else None
    if probe:
        counts = run_probe(endpoint, probe)
        say(f"probe of {len(probe)}: {counts['tuned']} replies as fine-tuned, {counts['base']} as the base")
    else:
        job.fallbacks.add(
            f"no {PROBE_NAME} beside the adapter: cannot tell whether the server applies it (run evaluate.py locally)"
        )
