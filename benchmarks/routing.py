#!/usr/bin/env python3
"""Measure how long a decision takes: a model in this process or behind a server, cheap routers, and the own part.

    python benchmarks/routing.py                                   # a 7B of random weights, NF4: a GPU with 10 GB
    python benchmarks/routing.py --size tiny --queries 48          # a smoke test without a GPU
    python benchmarks/routing.py --folder output/lora_adapters --data data      # a real adapter, beside cheap routers
    python benchmarks/routing.py --folder output/lora_adapters --url http://localhost:8000/v1 --served router
    python benchmarks/routing.py --chat http://localhost:8080/v1   # behind `python -m tool_aware.routing.serve`

Hand-written queries are asked by 1, 8 and 64 threads at once, choices alone and whole calls; every thread asks the next
query when it has its answer. All choices were asked once before; of whole calls as many others were, and none is asked
twice before all were asked: a CPU answers faster what it has answered before. `first_ms` is the very first choice;
`processor_ms` is the time of all cores that this process took for a query, which other work on the machine changes
less. Random weights do not end an answer, so that their whole calls have MOST_TOKENS tokens; there are few of them one
at a time (WHOLE). The router's own part is timed with an engine that answers at once. --chat asks an agent's way, by
the openai client: whole calls alone, for such a server has no other; its time is the client's.

Cheap routers: TF-IDF with logistic regression, and the nearest of the tools' mean embeddings, as routers by embeddings
choose. The embedding is the base model's own (on a CPU that of the tuned one, where the adapter is merged): its last
hidden states, averaged over the query's tokens. It is no sentence encoder; one would be smaller and better, and none is
at hand without a network. Both learn from train.json of --data, the embeddings from EXAMPLES rows a tool. "right" is
the share of the hand-written queries that get the tool a person has noted; there is none for random weights, and
without --data none for embeddings, which then learn from the queries themselves.

Reads:  benchmarks/probe/. Writes: benchmarks/results/routing_DEVICE.json (--output), after every row.
Exit codes: 0 done, 2 no GPU.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._random_mistral import SHAPES, environment, make_model, results_file
from tool_aware.config.settings import load_config
from tool_aware.console import UserError, run, say, table
from tool_aware.files import write_json
from tool_aware.paths import ROUTER_SETTINGS_NAME
from tool_aware.router_settings import RouterSettings
from tool_aware.routing import Router
from tool_aware.routing.decision import Policy

REPOSITORY = Path(__file__).resolve().parent.parent
PROBE = REPOSITORY / "benchmarks" / "probe" / "routing_probe.yaml"
MOST_TOKENS = 80
AT_ONCE = (1, 8, 64)
WHOLE = {1: 8, 8: 32, 64: 128}  # whole calls by how many at once: 80 tokens of a 7B take 3 seconds on an H100
EXAMPLES = 100  # rows a tool
CHAT_TIMEOUT_S = 300.0  # 64 whole calls on two cores
Asked = tuple[str, str]  # a query, and the tool that a person has noted
HEADERS = ("what", "at once", "queries", "p50, ms", "p95, ms", "a second", "right")


def main() -> int:
    """Measure, print a table, write JSON."""
    import torch

    args = parse_arguments()
    if not (args.folder or args.chat) and args.size == "7b" and not torch.cuda.is_available():
        raise UserError("no GPU", fix="--size tiny --queries 48 runs everywhere")
    asked, unasked = hand_written(args.queries), itertools.cycle(hand_written())
    if args.chat:
        return measure_chat(args, unasked)
    queries = [query for query, _ in asked]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or random_adapter(Path(scratch), args.size)
        started_s = time.perf_counter()
        router = (
            Router.connect(args.url, args.served, folder)
            if args.url
            else Router.load(folder, batch_size=args.batch_size)
        )
        results = Results(args, time.perf_counter() - started_s)
        results.content["first_ms"] = round(1e3 * router.route(queries[0], parameters=False).seconds, 2)
        results.add(measure_own_part(router, queries))
        if args.data:
            results.add(measure_tfidf(args.data, asked))
        for at_once in AT_ONCE:
            results.add(measure(router, asked, asked, at_once, parameters=False, is_real=bool(args.folder)))
        if not args.url:
            results.add(measure_embeddings(router, asked, args.data, is_real=bool(args.folder)))
        for at_once in AT_ONCE:
            first, whole = whole_calls(args, unasked, at_once)
            results.add(measure(router, first, whole, at_once, parameters=True, is_real=bool(args.folder)))
        router.close()
    print(results.report())
    return 0


class Results:
    """The rows so far; each is written when it is measured, so that a time limit loses none."""

    def __init__(self, args: argparse.Namespace, loaded_s: float) -> None:
        self.content: dict[str, Any] = {
            **environment(),
            "model": str(args.folder)
            if args.folder
            else "what it serves"
            if args.chat
            else f"{args.size} of random weights",
            "server": args.chat or args.url,
            "batch_size": args.batch_size,
            "load_s": round(loaded_s, 1),
            "rows": [],
        }
        self.path = args.output or results_file("routing", self.content["device"])

    def add(self, row: dict[str, Any]) -> None:
        """Keep and show a row."""
        self.content["rows"].append(row)
        write_json(self.path, self.content)
        say("  ".join(_cells(row)))

    def report(self) -> str:
        """Return the table."""
        head = f"{self.content['device']}, {self.content['model']}, loaded in {self.content['load_s']} s"
        return f"{head}\n{table(HEADERS, [_cells(row) for row in self.content['rows']])}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    right = "-" if row["right"] is None else f"{row['right']:.1%}"
    return (*(str(row[key]) for key in ("what", "at_once", "queries", "p50_ms", "p95_ms", "per_second")), right)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="7b")
    parser.add_argument("--folder", type=Path, help="an adapter or merged model instead of random weights")
    parser.add_argument("--url", help="of a server with this model, instead of loading it")
    parser.add_argument("--chat", metavar="URL", help="of routing.serve: whole calls by the openai client")
    parser.add_argument("--served", default="router", help="the model's name there (%(default)s)")
    parser.add_argument("--queries", type=int, default=512, help="choices at each number at once (%(default)s)")
    parser.add_argument("--whole", type=int, help=f"whole calls at each (default: by how many at once, {WHOLE})")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts that go through the model together")
    parser.add_argument("--data", type=Path, help="a folder whose train.json the cheap routers learn from")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def hand_written(count: int | None = None) -> list[Asked]:
    """Return so many hand-written queries with their tools, or all; spread over the tools, repeated if need be."""
    by_slice = yaml.safe_load(PROBE.read_text(encoding="utf-8"))
    found = [(query, tool) for tools in by_slice.values() for tool, texts in tools.items() for query in texts]
    asked = [(query if isinstance(query, str) else query["query"], tool) for query, tool in found]
    random.Random(0).shuffle(asked)
    return [asked[place % len(asked)] for place in range(len(asked) if count is None else count)]


def whole_calls(args: argparse.Namespace, unasked: Iterator[Asked], at_once: int) -> tuple[list[Asked], list[Asked]]:
    """Return queries to ask first, and those to measure."""
    count = args.whole or WHOLE[at_once]
    return list(itertools.islice(unasked, min(at_once, count))), list(itertools.islice(unasked, count))


def random_adapter(scratch: Path, size: str) -> Path:
    """Write a model of random weights with a random adapter of rank 8; return the adapter's folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tool_aware.demo.toy_model import save_tokenizer

    base, adapter = scratch / "base", scratch / "lora_adapters"
    say(f"writing {size} random weights")
    make_model(base, size)
    save_tokenizer(base)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(adapter)
    config = load_config(REPOSITORY / "config.yaml", [f"model.name={base}"])
    settings = RouterSettings.of(config).model_copy(update={"max_new_tokens": MOST_TOKENS})
    (adapter / ROUTER_SETTINGS_NAME).write_text(settings.model_dump_json())
    return adapter


# ---- measurements -------------------------------------------------------------------------------------------


def measure(
    router: Router, first: Sequence[Asked], asked: Sequence[Asked], at_once: int, *, parameters: bool, is_real: bool
) -> dict[str, Any]:
    """Ask all queries from `at_once` threads, after those of `first`."""
    queries = [query for query, _ in asked]
    ask = functools.partial(router.route, parameters=parameters)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(ask, [query for query, _ in first]))
        started_s, processor_s = time.perf_counter(), time.process_time()
        decisions = list(pool.map(ask, queries))
        seconds, processor_s = time.perf_counter() - started_s, time.process_time() - processor_s
    failed = sum(decision.confidence is None for decision in decisions)
    latencies = [decision.seconds for decision in decisions]
    chosen = [decision.tool for decision in decisions] if is_real else None
    what = "whole calls" if parameters else "choices"
    return _row(what, at_once, latencies, seconds, _right(chosen, asked)) | {
        "failed": failed,
        "processor_ms": round(1e3 * processor_s / len(asked), 2),
    }


def measure_chat(args: argparse.Namespace, unasked: Iterator[Asked]) -> int:
    """Ask an OpenAI-compatible server from 1, 8 and 64 threads; the tool is in what it adds to a completion."""
    import openai

    results = Results(args, 0.0)
    with openai.OpenAI(base_url=args.chat, api_key="none", max_retries=0, timeout=CHAT_TIMEOUT_S) as client:
        try:
            model = client.models.list().data[0].id
        except openai.OpenAIError as error:
            fix = "start python -m tool_aware.routing.serve FOLDER"
            raise UserError(f"no server answers: {error}", where=args.chat, fix=fix) from None

        def ask(query: str) -> tuple[str | None, float]:
            started_s = time.perf_counter()
            message = {"role": "user", "content": query}
            found = client.chat.completions.create(model=model, messages=[message])
            return found.model_extra["decision"]["tool"], time.perf_counter() - started_s

        for at_once in AT_ONCE:
            first, whole = whole_calls(args, unasked, at_once)
            queries = [query for query, _ in whole]
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(ask, [query for query, _ in first]))
                started_s = time.perf_counter()
                found = list(pool.map(ask, queries))
                seconds = time.perf_counter() - started_s
            tools, latencies = zip(*found, strict=True)
            results.add(_row("whole calls", at_once, latencies, seconds, _right(tools, whole)))
    print(results.report())
    return 0


def _right(chosen: Sequence[str | None] | None, asked: Sequence[Asked]) -> float | None:
    return chosen and sum(one == tool for one, (_, tool) in zip(chosen, asked, strict=True)) / len(asked)


class AtOnce:
    """An engine that answers at once: what is left is the router's own part."""

    def __init__(self, tools: Sequence[str]) -> None:
        self._scores = {tool: -float(place) for place, tool in enumerate(tools)}

    def choose(self, prompt: list[int]) -> Future[dict[str, float]]:
        """Return the same scores for every prompt."""
        return _done(self._scores)

    def complete(self, prompt: list[int], tool: str) -> Future[str]:
        """Return the same call for every prompt."""
        return _done(f'Tool: {tool}\nParameters: {{"query": "a"}}\nReasoning: It asks so.')

    def close(self) -> None:
        """Do nothing."""


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def measure_own_part(router: Router, queries: Sequence[str]) -> dict[str, Any]:
    """Time all of a decision but the model: prompt, tokens, policy, reading the call."""
    own = Router(AtOnce(router.tools.names), router._decider.tokenizer, router.settings, Policy())
    own.route_many(queries[:8])
    started_s = time.perf_counter()
    latencies = [own.route(query).seconds for query in queries]
    return _row("the router's own part", 1, latencies, time.perf_counter() - started_s)


def measure_tfidf(data: Path, asked: Sequence[Asked]) -> dict[str, Any]:
    """Time the choices of TF-IDF and logistic regression, one query at a time."""
    from tool_aware.evaluation.scoring.baselines import tfidf_regression

    rows = training_rows(data)
    choose = tfidf_regression([query for query, _ in rows], [tool for _, tool in rows])
    return _one_by_one("TF-IDF, choices", lambda query: choose([query])[0][0], asked, is_real=True)


def measure_embeddings(router: Router, asked: Sequence[Asked], data: Path | None, *, is_real: bool) -> dict[str, Any]:
    """Time the choices by the nearest of the tools' mean embeddings, one query at a time."""
    import torch

    engine = router._decider.engine
    embed = embedder(engine._model, router._decider.tokenizer)
    by_tool: dict[str, list[str]] = {}
    for query, tool in training_rows(data) if data else asked:
        by_tool.setdefault(tool, []).append(query)
    tools = list(by_tool)
    means = [torch.stack([embed(query) for query in by_tool[tool][:EXAMPLES]]).mean(dim=0) for tool in tools]
    centroids = torch.nn.functional.normalize(torch.stack(means), dim=1)  # (tools, hidden)
    what = "mean embeddings, choices"
    choose = lambda query: tools[int((centroids @ embed(query)).argmax())]  # noqa: E731
    return _one_by_one(what, choose, asked, is_real=is_real and data is not None)


def embedder(model: Any, tokenizer: Any) -> Callable[[str], Any]:
    """Return what gives a text's last hidden states of the base model, averaged, of length 1; float32, (hidden,)."""
    import torch

    without_adapter = getattr(model, "disable_adapter", nullcontext)
    inner = model.get_base_model().model if hasattr(model, "get_base_model") else model.model

    def embed(text: str) -> Any:
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
        with torch.inference_mode(), without_adapter():
            states = inner(input_ids=ids, use_cache=False).last_hidden_state[0]  # (T, hidden)
        return torch.nn.functional.normalize(states.float().mean(dim=0), dim=0)

    return embed


def training_rows(data: Path) -> list[Asked]:
    """Return the queries of train.json with their tools."""
    from tool_aware.rows import load_rows

    rows = load_rows(data / "train.json", load_config(REPOSITORY / "config.yaml").toolbox).rows
    return [(row.query, row.tool) for row in rows]


def _one_by_one(what: str, choose: Callable[[str], str], asked: Sequence[Asked], *, is_real: bool) -> dict[str, Any]:
    chosen: list[str] = []
    choose(asked[0][0])
    started_s = time.perf_counter()
    latencies = [_seconds(lambda query=query: chosen.append(choose(query))) for query, _ in asked]
    seconds = time.perf_counter() - started_s
    return _row(what, 1, latencies, seconds, _right(chosen, asked) if is_real else None)


def _seconds(action: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    action()
    return time.perf_counter() - started_s


def _row(
    what: str, at_once: int, latencies: Sequence[float], seconds: float, right: float | None = None
) -> dict[str, Any]:
    cuts = statistics.quantiles(latencies, n=20)
    return {
        "what": what,
        "at_once": at_once,
        "queries": len(latencies),
        "p50_ms": round(1e3 * statistics.median(latencies), 2),
        "p95_ms": round(1e3 * cuts[-1], 2),
        "per_second": round(len(latencies) / seconds, 1),
        "right": right,
    }


if __name__ == "__main__":
    run(main)
