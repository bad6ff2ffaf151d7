"""Ask servers for the answers to a run's test rows, and count those that are the run's own, character by character.

    python benchmarks/serving.py --run .demo --llama-server build/bin/llama-server --llama-source llama.cpp
    python benchmarks/serving.py --run .demo --vllm venv/bin/vllm
    python benchmarks/serving.py --markdown      # the table of docs/benchmarks/serving.md, from the results

The run is one of `make demo`, with output/ and evaluation_results/ in the folder. llama.cpp serves the merged model in
32 and 16 bits, 8 and some 4, and the base with the adapter; vLLM serves the merged model and the base with the adapter.
Each is asked with the trained token ids, with the prompt as the text of a chat, and under the exported grammar. The
merged model in 32 bits is also asked as an OpenAI client would: the query alone, with `tools`, under the exported chat
template and, in vLLM, the exported parser. Of the requests none names a temperature: what the merged model's files say
has to hold.

Reads   the run; earlier results in the same file, whose server is the other one
Writes  benchmarks/results/serving_cpu.json
Exit    0 done; 1 a server does not start; 2 something to fix
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _random_mistral import REPOSITORY, environment

from tool_aware.chat_format import encode_prompt
from tool_aware.chat_server import ChatServer, chat_reply
from tool_aware.config.settings import load_config
from tool_aware.console import UserError, run, say, table
from tool_aware.files import write_json
from tool_aware.paths import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_FOLDER,
    FINAL_MODEL_FOLDER,
    TOOLS_TEMPLATE_NAME,
    VLLM_PARSER_NAME,
    split_file,
)
from tool_aware.prompt import parse_response, render_response
from tool_aware.router_settings import read_router_settings
from tool_aware.rows import Row, load_rows
from tool_aware.tokenizer import load_tokenizer
from tool_aware.tools import ToolCall
from tool_aware.training.export.serving_files import write_serving_files
from tool_aware.training.run.run_card import vllm_max_lora_rank

RESULTS = REPOSITORY / "benchmarks" / "results" / "serving_cpu.json"
NAME = "router"
START_S = 600
MOST_TOKENS = 128
AT_ONCE = 4
WHOLE = ("f32", "f16")
QUANTISED = ("Q8_0", "Q4_K_M")
HEADERS = ("server", "model", "sent", "grammar", "tool accuracy", "texts equal to the local answers")


@dataclass(frozen=True)
class Run:
    """A trained run: its rows, the ids of their prompts, and the texts that evaluate.py got from the models here."""

    folder: Path
    rows: list[Row]
    prompts: list[list[int]]
    tools: list[dict[str, Any]]  # as an OpenAI client sends them, in another order and other words than in training
    local: dict[str, list[str]]  # by "off" and "on": without and with constrained decoding

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a folder as `make demo` leaves it."""
        tools = load_config(REPOSITORY / "config.demo.yaml").toolbox
        rows = load_rows(split_file(folder / "data", "test"), tools).rows
        tokenizer = load_tokenizer(str(folder / "output" / FINAL_MODEL_FOLDER))
        logs = {"off": "finetuned", "on": "finetuned_constrained"}
        answers = folder / "evaluation_results" / "predictions"
        local = {grammar: _texts(answers / f"{name}.jsonl", len(rows)) for grammar, name in logs.items()}
        functions = [{"name": tool.name, "parameters": dict(tool.parameters)} for tool in reversed(list(tools))]
        sent = [{"type": "function", "function": function} for function in functions]
        return cls(folder, rows, [encode_prompt(tokenizer, row.instruction) for row in rows], sent, local)

    @property
    def merged(self) -> Path:
        """Return the folder of the merged model."""
        return self.folder / "output" / FINAL_MODEL_FOLDER

    @property
    def adapter(self) -> Path:
        """Return the folder of the adapter."""
        return self.folder / "output" / ADAPTER_FOLDER

    @property
    def base(self) -> str:
        """Return the base model's folder, which the adapter's settings name from the run's parent."""
        name = json.loads((self.adapter / ADAPTER_CONFIG_NAME).read_text())["base_model_name_or_path"]
        folder = self.folder / Path(name).name
        return str(folder if folder.is_dir() else name)

    def write_serving_files(self, folder: Path) -> None:
        """Write the template and the parser as the export does."""
        write_serving_files(folder, load_tokenizer(str(self.merged)), read_router_settings(self.adapter))

    @property
    def rank(self) -> int:
        """Return the rank of the adapter."""
        return int(json.loads((self.adapter / ADAPTER_CONFIG_NAME).read_text())["r"])


@dataclass(frozen=True)
class Figure:
    """What one way of asking one server gave."""

    server: str
    model: str
    sent: str
    grammar: str
    right: int
    equal: int
    rows: int
    command: str
    equal_prompts: int | None = None  # whose ids, by the server, are the trained ones; only with `tools`
    calls: int | None = None  # that came back as tool_calls; only with `tools`

    def line(self) -> tuple[str, ...]:
        """Format the figure as a row of the table."""
        share = f"{100 * self.right / self.rows:.2f} %"
        more = "" if self.calls is None else f"; {self.equal_prompts} prompts, {self.calls} tool_calls"
        return (self.server, self.model, self.sent, self.grammar, share, f"{self.equal} of {self.rows}{more}")


def _texts(path: Path, rows: int) -> list[str]:
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        answer = json.loads(line)
        found[answer["row"]] = answer["text"].strip()
    if found.keys() != set(range(rows)):
        raise UserError(f"has answers to {len(found)} of {rows} rows", where=str(path), fix="run evaluate.py there")
    return [found[row] for row in range(rows)]


def main(argv: Sequence[str] | None = None) -> int:
    """Start the servers one after the other, ask them, print the table."""
    options = parse_arguments(argv)
    if options.markdown:
        figures = [Figure(**figure) for figure in json.loads(RESULTS.read_text())["figures"]]
        print("\n".join(f"| {' | '.join(line)} |" for line in (HEADERS, ["---"] * 6, *(f.line() for f in figures))))
        return 0
    own = Run.load(options.run)
    figures, versions = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        own.write_serving_files(Path(scratch))
        if options.llama_server:
            figures += with_llama_cpp(own, options, Path(scratch))
            versions["llama.cpp"] = version_of([options.llama_server, "--version"])
        if options.vllm:
            figures += with_vllm(own, options, Path(scratch))
            versions["vLLM"] = version_of([options.vllm, "--version"])
    earlier = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"figures": [], "servers": {}}
    asked = {figure.server for figure in figures}
    kept = [figure for figure in earlier["figures"] if figure["server"] not in asked]
    local = {grammar: right(own.rows, texts) / len(own.rows) for grammar, texts in own.local.items()}
    servers = {**earlier["servers"], **versions}
    content = {**environment(), "machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    every = sorted([*kept, *map(asdict, figures)], key=lambda figure: figure["server"])
    write_json(RESULTS, {**content, "servers": servers, "local_accuracy": local, "figures": every})
    print(table(HEADERS, [figure.line() for figure in figures]))
    say(str(RESULTS))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, default=Path(".demo"), metavar="DIR", help="the trained run (%(default)s)")
    add("--llama-server", metavar="FILE", help="llama-server; llama-quantize is beside it")
    add("--llama-source", type=Path, metavar="DIR", help="llama.cpp's sources, for its conversion scripts")
    add("--vllm", metavar="FILE", help="the command vllm")
    add("--threads", type=int, metavar="N", help="of llama-server; one where other programs use the cores too")
    add("--port", type=int, default=8181)
    add("--markdown", action="store_true", help="print the table of the recorded results and stop")
    options = parser.parse_args(argv)
    if bool(options.llama_server) != bool(options.llama_source):
        parser.error("--llama-server and --llama-source go together")
    return options


def version_of(command: Sequence[str]) -> str:
    """Return the first line of what a program says of its version."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "ersion" in line or line[:1].isdigit()]
    return lines[-1].strip() if lines else "unknown"


# ---- the servers ------------------------------------------------------------------------------------------


def with_llama_cpp(own: Run, options: argparse.Namespace, scratch: Path) -> list[Figure]:
    """Convert and quantise the merged model, base and adapter, and ask llama-server with each."""
    convert, quantize = options.llama_source, Path(options.llama_server).with_name("llama-quantize")
    files = {kind: scratch / f"{kind}.gguf" for kind in (*WHOLE, *QUANTISED, "base", "adapter")}
    python = [sys.executable, str(convert / "convert_hf_to_gguf.py")]
    for kind in WHOLE:
        do([*python, own.merged, "--outtype", kind, "--outfile", files[kind]])
    do([*python, own.base, "--outtype", "f16", "--outfile", files["base"]])
    lora = [sys.executable, convert / "convert_lora_to_gguf.py", own.adapter, "--base", own.base]
    do([*lora, "--outtype", "f32", "--outfile", files["adapter"]])
    for kind in QUANTISED:
        do([quantize, files["f16"], files[kind], kind])
    grammar = (own.folder / "evaluation_results" / "answer.gbnf").read_text()
    fields = {"off": {}, "on": {"grammar": grammar}}
    figures = []
    for kind in (*WHOLE, *QUANTISED, "base + LoRA"):
        is_base = kind == "base + LoRA"
        model = ["-m", files["base"], "--lora", files["adapter"], "--temp", "0"] if is_base else ["-m", files[kind]]
        command = [options.llama_server, *model, "--alias", NAME, "-c", str(AT_ONCE * 1024), "-np", str(AT_ONCE)]
        command += ["--threads", str(options.threads)] if options.threads else []
        command += ["--jinja", "--chat-template-file", scratch / TOOLS_TEMPLATE_NAME] if kind == WHOLE[0] else []
        shown = " ".join(Path(str(part)).name if os.sep in str(part) else str(part) for part in command)
        with started([*command, "--port", str(options.port)], options.port) as address:
            names = ("llama.cpp", kind if is_base else f"merged, {kind}", shown)
            figures += asked(own, address, names, fields)
            figures += [asked_with_tools(own, address, names)] if kind == WHOLE[0] else []
    return figures


def with_vllm(own: Run, options: argparse.Namespace, scratch: Path) -> list[Figure]:
    """Ask vLLM with the merged model, and with the base and the adapter."""
    regex = (own.folder / "evaluation_results" / "answer.regex").read_text().rstrip("\n")
    fields = {"off": {}, "on": {"structured_outputs": {"regex": regex}}}
    general = ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", str(AT_ONCE), "--enforce-eager"]
    zero = ["--override-generation-config", '{"temperature": 0}']
    adapter = [
        "--enable-lora",
        "--lora-modules",
        f"{NAME}={own.adapter}",
        "--max-lora-rank",
        str(vllm_max_lora_rank(own.rank)),
    ]
    reads_tools = ["--enable-auto-tool-choice", "--tool-call-parser", "tool_aware"]
    reads_tools += ["--tool-parser-plugin", str(scratch / VLLM_PARSER_NAME)]
    reads_tools += ["--chat-template", str(scratch / TOOLS_TEMPLATE_NAME)]
    ways = {
        "merged": [str(own.merged), "--served-model-name", NAME, *reads_tools],
        "base + LoRA": [own.base, "--chat-template", str(own.adapter / "chat_template.jinja"), *adapter, *zero],
    }
    figures = []
    for model, words in ways.items():
        command = [options.vllm, "serve", *words, *general]
        shown = " ".join(Path(part).name if part.startswith(os.sep) else part for part in command)
        with started([*command, "--port", str(options.port)], options.port) as address:
            figures += asked(own, address, ("vLLM", model, shown), fields)
            figures += [asked_with_tools(own, address, ("vLLM", model, shown))] if model == "merged" else []
    return figures


def do(command: Sequence[object]) -> None:
    """Run a program to its end. Raises UserError with its last lines if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"failed: {(done.stdout + done.stderr)[-600:]}", where=str(command[0]))


@contextlib.contextmanager
def started(command: Sequence[object], port: int) -> Iterator[str]:
    """Start a server and yield its address once it answers; stop it afterwards."""
    say(" ".join(map(str, command)))
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + START_S
            while True:
                try:
                    ChatServer(f"{address}/v1", timeout_s=5, pauses_s=()).request("models")
                    break
                except UserError:
                    if process.poll() is not None or time.monotonic() > deadline_s:
                        log.seek(0)
                        raise RuntimeError(f"no server: {log.read()[-2000:].decode(errors='replace')}") from None
                    time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


# ---- asking -----------------------------------------------------------------------------------------------


def asked(own: Run, address: str, names: tuple[str, str, str], fields: dict[str, dict[str, Any]]) -> list[Figure]:
    """Ask for all rows as ids and as text, with each of the grammars."""
    server, model, command = names
    figures = []
    for grammar, more in fields.items():
        ways: dict[str, Callable[[int], str]] = {
            "ids": lambda index, more=more: by_ids(own, address, server, index, more),
            "text": lambda index, more=more: by_text(own, address, index, more),
        }
        for sent, ask in ways.items():
            with ThreadPoolExecutor(AT_ONCE) as pool:
                texts = [text.strip() for text in pool.map(ask, range(len(own.rows)))]
            equal = sum(ours == theirs for ours, theirs in zip(own.local[grammar], texts, strict=True))
            figure = Figure(server, model, sent, grammar, right(own.rows, texts), equal, len(texts), command)
            say("  ".join(figure.line()))
            figures.append(figure)
    return figures


def asked_with_tools(own: Run, address: str, names: tuple[str, str, str]) -> Figure:
    """Ask for all rows as an OpenAI client does; a call counts as the text that it stands for."""
    server, model, command = names
    with ThreadPoolExecutor(AT_ONCE) as pool:
        prompts = list(pool.map(lambda index: prompt_ids(own, address, server, index), range(len(own.rows))))
        answers = list(pool.map(lambda index: by_tools(own, address, index), range(len(own.rows))))
    texts = [text for text, _ in answers]
    equal = sum(ours == theirs for ours, theirs in zip(own.local["off"], texts, strict=True))
    equal_prompts = sum(ours == theirs for ours, theirs in zip(own.prompts, prompts, strict=True))
    calls, known = sum(is_call for _, is_call in answers), right(own.rows, texts)
    figure = Figure(server, model, "tools", "off", known, equal, len(texts), command, equal_prompts, calls)
    say("  ".join(figure.line()))
    return figure


def prompt_ids(own: Run, address: str, server: str, index: int) -> list[int]:
    """Return the ids of the prompt that a server makes of a query and the tools."""
    body = {"messages": [{"role": "user", "content": own.rows[index].query}], "tools": own.tools}
    if server == "vLLM":
        return list(ChatServer(address).request("tokenize", {**body, "model": NAME})["tokens"])
    text = ChatServer(address).request("apply-template", body)["prompt"]
    whole = {"content": text, "add_special": True, "parse_special": True}
    return list(ChatServer(address).request("tokenize", whole)["tokens"])


def by_tools(own: Run, address: str, index: int) -> tuple[str, bool]:
    """Ask with the query and the tools; return the answer's text, and whether it came as a call."""
    messages = [{"role": "user", "content": own.rows[index].query}]
    body = {"model": NAME, "messages": messages, "tools": own.tools, "max_tokens": MOST_TOKENS}
    message = ChatServer(f"{address}/v1").request("chat/completions", body)["choices"][0]["message"]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        found = ToolCall(function["name"], json.loads(function["arguments"]), message["content"])
        return render_response(found), True
    return str(message["content"]).strip(), False


def by_ids(own: Run, address: str, server: str, index: int, more: dict[str, Any]) -> str:
    """Ask with the ids of the trained prompt."""
    body = {"prompt": own.prompts[index], **more}
    if server == "llama.cpp":
        reply = ChatServer(address).request("completion", {**body, "n_predict": MOST_TOKENS})
        return str(reply["content"])
    reply = ChatServer(f"{address}/v1").request("completions", {**body, "model": NAME, "max_tokens": MOST_TOKENS})
    return str(reply["choices"][0]["text"])


def by_text(own: Run, address: str, index: int, more: dict[str, Any]) -> str:
    """Ask with the text of the user turn, which the server wraps and tokenises."""
    messages = [{"role": "user", "content": own.rows[index].instruction}]
    body = {"model": NAME, "messages": messages, "max_tokens": MOST_TOKENS, **more}
    return chat_reply(ChatServer(f"{address}/v1").request("chat/completions", body), address).text


def right(rows: Sequence[Row], texts: Sequence[str]) -> int:
    """Count the rows whose answer is a call of the right tool."""
    calls = [parse_response(text).call for text in texts]
    return sum(call is not None and call.tool == row.tool for row, call in zip(rows, calls, strict=True))


if __name__ == "__main__":
    run(main)
