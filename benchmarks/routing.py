#!/usr/bin/env python3
"""Measure how long a decision takes: a model in this process or behind a server, TF-IDF, and the router's own part.

    python benchmarks/routing.py                                   # a 7B of random weights, NF4: a GPU with 10 GB
    python benchmarks/routing.py --size tiny --queries 48          # a smoke test without a GPU
    python benchmarks/routing.py --folder output/lora_adapters     # a real adapter
    python benchmarks/routing.py --folder output/lora_adapters --url http://localhost:8000/v1 --served router

Hand-written queries are asked by 1, 8 and 64 threads at once, choices alone and whole calls; every thread asks the next
query when it has its answer. Random weights do not end an answer, so that their whole calls have MOST_TOKENS tokens.
The router's own part is timed with an engine that answers at once.

Reads:  benchmarks/probe/. Writes: benchmarks/results/routing_DEVICE.json (--output). Exit codes: 0 done, 2 no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._random_mistral import SHAPES, environment, make_model, results_file
from tool_aware.config.settings import load_config
from tool_aware.console import UserError, run, say, table
from tool_aware.paths import ROUTER_SETTINGS_NAME
from tool_aware.router_settings import RouterSettings
from tool_aware.routing import Router
from tool_aware.routing.decision import Policy

REPOSITORY = Path(__file__).resolve().parent.parent
PROBE = REPOSITORY / "benchmarks" / "probe" / "routing_probe.yaml"
MOST_TOKENS = 80
AT_ONCE = (1, 8, 64)


def main() -> int:
    """Measure, print a table, write JSON."""
    import torch

    args = parse_arguments()
    if not args.folder and args.size == "7b" and not torch.cuda.is_available():
        raise UserError("no GPU", fix="--size tiny --queries 48 runs everywhere")
    queries = hand_written(args.queries)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or random_adapter(Path(scratch), args.size)
        started_s = time.perf_counter()
        router = (
            Router.connect(args.url, args.served, folder)
            if args.url
            else Router.load(folder, batch_size=args.batch_size)
        )
        loaded_s = time.perf_counter() - started_s
        rows = [measure(router, queries, at_once, parameters=False) for at_once in AT_ONCE]
        rows += [measure(router, queries[: args.whole], at_once, parameters=True) for at_once in AT_ONCE]
        rows.append(measure_own_part(router, queries))
        router.close()
    if args.data:
        rows.append(measure_tfidf(args.data, queries))
    result = {
        **environment(),
        "model": str(args.folder) if args.folder else f"{args.size} of random weights",
        "server": args.url,
        "batch_size": args.batch_size,
        "load_s": round(loaded_s, 1),
        "rows": rows,
    }
    print(report(result))
    output = args.output or results_file("routing", result["device"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="7b")
    parser.add_argument("--folder", type=Path, help="an adapter or merged model instead of random weights")
    parser.add_argument("--url", help="of a server with this model, instead of loading it")
    parser.add_argument("--served", default="router", help="the model's name there (%(default)s)")
    parser.add_argument("--queries", type=int, default=512, help="choices at each number at once (%(default)s)")
    parser.add_argument("--whole", type=int, default=128, help="whole calls at each (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts that go through the model together")
    parser.add_argument("--data", type=Path, help="a folder whose train.json TF-IDF learns from")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def hand_written(count: int) -> list[str]:
    """Return so many hand-written queries, repeated if there are fewer."""
    by_slice = yaml.safe_load(PROBE.read_text(encoding="utf-8"))
    queries = [query for tools in by_slice.values() for texts in tools.values() for query in texts]
    texts = [query if isinstance(query, str) else query["query"] for query in queries]
    return [texts[place % len(texts)] for place in range(count)]


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


def measure(router: Router, queries: Sequence[str], at_once: int, *, parameters: bool) -> dict[str, Any]:
    """Ask all queries from `at_once` threads; the first ones are asked once before."""
    for warm in (queries[:1], queries[:at_once]):
        router.route_many(warm, parameters=parameters)
    with ThreadPoolExecutor(at_once) as pool:
        started_s = time.perf_counter()
        decisions = list(pool.map(lambda query: router.route(query, parameters=parameters), queries))
        seconds = time.perf_counter() - started_s
    failed = sum(decision.confidence is None for decision in decisions)
    latencies = [decision.seconds for decision in decisions]
    return _row("whole calls" if parameters else "choices", at_once, latencies, seconds) | {"failed": failed}


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


def measure_tfidf(data: Path, queries: Sequence[str]) -> dict[str, Any]:
    """Time the choices of TF-IDF and logistic regression, one query at a time."""
    from tool_aware.evaluation.scoring.baselines import tfidf_regression
    from tool_aware.rows import load_rows

    rows = load_rows(data / "train.json", load_config(REPOSITORY / "config.yaml").toolbox).rows
    choose = tfidf_regression([row.query for row in rows], [row.tool for row in rows])
    started_s = time.perf_counter()
    latencies = [_seconds(lambda query=query: choose([query])) for query in queries]
    return _row("TF-IDF, choices", 1, latencies, time.perf_counter() - started_s)


def _seconds(action: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    action()
    return time.perf_counter() - started_s


def _row(what: str, at_once: int, latencies: Sequence[float], seconds: float) -> dict[str, Any]:
    cuts = statistics.quantiles(latencies, n=20)
    return {
        "what": what,
        "at_once": at_once,
        "queries": len(latencies),
        "p50_ms": round(1e3 * statistics.median(latencies), 2),
        "p95_ms": round(1e3 * cuts[-1], 2),
        "per_second": round(len(latencies) / seconds, 1),
    }


def report(result: dict[str, Any]) -> str:
    """Return the table."""
    headers = ("what", "at once", "queries", "p50, ms", "p95, ms", "a second")
    keys = ("what", "at_once", "queries", "p50_ms", "p95_ms", "per_second")
    rows = [tuple(str(row[key]) for key in keys) for row in result["rows"]]
    head = f"{result['device']}, {result['model']}, loaded in {result['load_s']} s"
    return f"{head}\n{table(headers, rows)}"


if __name__ == "__main__":
    run(main)
