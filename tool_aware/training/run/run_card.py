"""The model card of a run, in the Hugging Face format, with the figures of that run."""

from __future__ import annotations

import contextlib
import platform
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tool_aware.config.sections import ModelSection
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, duration, say
from tool_aware.files import write_text
from tool_aware.paths import (
    CARD_NAME,
    CHAT_TEMPLATE_NAME,
    CURVES_NAME,
    FINAL_MODEL_FOLDER,
    METRICS_NAME,
    MODELFILE_NAME,
    PROMPT_TEMPLATE_NAME,
    TOOLS_TEMPLATE_NAME,
    VLLM_PARSER_NAME,
    split_name,
)
from tool_aware.training.run.curves import draw_curves, read_metrics
from tool_aware.training.run.run_record import claimed
from tool_aware.versions import TRAINING_LIBRARIES, package_versions

_MARKS = re.compile(r"([\\`*_\[\]!#])")
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that its --max-lora-rank takes; 16 if it is not given
_LONGEST_REASON = 300  # characters
_SECTIONS = ("model", "quantization", "lora", "training", "optimization", "export")  # no names of the user's database


@dataclass(frozen=True)
class RunFacts:
    """The facts about a run that its card shows."""

    config: Config
    adapter: Path
    data: Mapping[str, tuple[int, str]]  # split: rows trained or scored on, sha256 of the file
    steps: int
    exported_step: int
    why_exported: str
    validation: Mapping[str, float] | None
    precision: str  # the name of the dtype that training computed in
    device: str
    license: str | None
    fallbacks: Sequence[str] = ()  # what differed from the configuration or the plan
    merged: Mapping[str, Any] | None = None  # how the merged model agrees with base + adapter; None if there is none


def render_card(facts: RunFacts, logged: Sequence[Mapping[str, Any]], *, picture: str | None = None) -> str:
    """Return the text of the card.

    `logged` are the logged steps of metrics.jsonl, of all sessions of a resumed run; `picture` is the curves' path as
    seen from the card.
    """
    base = facts.config.model.name
    front = {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        **({"license": facts.license} if facts.license else {}),
        "tags": [f"base_model:adapter:{base}", "lora", "qlora", "transformers", "tool-use", "function-calling"],
    }
    tools = ", ".join(code(name) for name in facts.config.toolbox.names)
    data = [(split_name(split), f"{examples:,}", sha256) for split, (examples, sha256) in facts.data.items()]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# Tool choice: a LoRA adapter for {plain(base)}",
        f"Given a query, it names one of the tools {tools}, the parameters of its call, and why.\n"
        "Trained by `train_tool_aware.py`; all figures are of this run.",
        "## The run",
        _table(("", ""), list(_figures(facts, logged))),
        *([f"![losses, tool accuracy, learning rate and speed over the steps]({picture})"] if picture else []),
        "## Data",
        _table(("file", "examples", "sha256"), data),
        "## Settings that differ from the defaults",
        _settings(facts.config),
        "## How to use it",
        _usage(facts),
        "## How to serve it",
        _serving(facts),
        "## Limits",
        "The figures on val.json chose the adapter, so they flatter it; `python evaluate.py` measures it on test.json, "
        "against the base.\nIt knows the tools of its prompt only. "
        f"{'The' if facts.license else 'Its licence is not known here: the'} licence of the base model applies.",
    ]
    return "\n\n".join(parts) + "\n"


def _figures(facts: RunFacts, logged: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    examples, seconds = (sum(line[name] or 0 for line in logged) for name in ("examples", "seconds"))
    peaks = [line["peak_gib"] for line in logged if line.get("peak_gib") is not None]
    lora = facts.config.lora
    yield "adapter", plain(f"LoRA r={lora.r}, alpha={lora.alpha:g}, on {lora.target_modules}")
    yield "base weights", {"4bit": "4 bits", "8bit": "8 bits", "none": "16 bits"}[facts.config.quantization.kind]
    yield "computed in", facts.precision
    yield "steps", f"{facts.steps:,}"
    yield "exported", f"step {facts.exported_step:,}: {facts.why_exported}"
    if facts.validation:
        yield "loss on val.json", f"{facts.validation['val_loss']:.4f} per label token"
        right, rows = facts.validation["val_tool_accuracy"], facts.validation["val_examples"]
        yield "right tool on val.json", f"{right:.1%} of {rows} rows"
    if logged and seconds:
        yield "time in steps", duration(seconds)
        yield "examples per second", f"{examples / seconds:.1f}"
        last = logged[-1]["loss"]
        yield "last logged training loss", "not finite" if last is None else f"{last:.4f}"
    yield "peak GPU memory", f"{max(peaks):.2f} GiB allocated" if peaks else "none used"
    for fallback in facts.fallbacks:
        yield "not as planned", plain(fallback)
    yield "device", plain(facts.device)
    versions = package_versions()
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in TRAINING_LIBRARIES if name in versions)


def _settings(config: Config) -> str:
    tools = [tool.model_dump() for tool in config.tools]
    default = Config.model_validate({"model": {"name": config.model.name}, "tools": tools}).as_dict()
    used = config.as_dict()
    changed = [
        (code(f"{section}.{key}"), code(default[section][key]), code(value))
        for section in _SECTIONS
        for key, value in used[section].items()
        if value != default[section][key] and key != "output_dir"
    ]
    return _table(("setting", "default", "here"), changed) if changed else "None."


def _usage(facts: RunFacts) -> str:
    merged = f"\n\n{_merged_model(facts.merged, facts.adapter)}" if facts.merged else ""
    name = ascii(str(facts.adapter))  # a path may hold quotes, line ends and backticks
    fence = _fence(name, 3)
    return f"""{fence}python
from pathlib import Path

from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

adapter = {name}
model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(adapter)

query = "What does our travel policy say about trains?"
for token in tokenizer.added_tokens_decoder.values():  # what a user types must not end the turn
    if token.special and len(token.content) > 1:
        query = query.replace(token.content, f"{{token.content[0]}} {{token.content[1:]}}")
turn = Path(adapter, "{PROMPT_TEMPLATE_NAME}").read_text().replace("{{query}}", query)
messages = [{{"role": "user", "content": turn}}]
settings = {{"add_generation_prompt": True, "enable_thinking": False, "return_tensors": "pt", "return_dict": True}}
prompt = tokenizer.apply_chat_template(messages, **settings)
output = model.generate(**prompt.to(model.device), max_new_tokens=256, do_sample=False)
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
{fence}{merged}"""


def vllm_max_lora_rank(rank: int) -> int:
    """Return the value of vLLM's --max-lora-rank for adapters of a rank, which config.yaml bounds by 512."""
    return next(most for most in _VLLM_RANKS if most >= rank)


def _serving(facts: RunFacts) -> str:
    """Return the commands of vLLM and llama.cpp with this run's names, rank and precision, as far as they apply."""
    base, adapter = facts.config.model.name, facts.adapter
    final, rank = adapter.parent / FINAL_MODEL_FOLDER, vllm_max_lora_rank(facts.config.lora.r)
    dtype = facts.merged["dtype"] if facts.merged else "auto"
    served = ["--enable-lora", "--lora-modules", f"router={adapter}", "--max-lora-rank", rank, "--dtype", dtype]
    greedy = ["--override-generation-config", '{"temperature": 0}']
    template = ["--chat-template", adapter / CHAT_TEMPLATE_NAME]
    lines = [["vllm", "serve", base, *served, *template, *greedy]]
    if facts.merged:
        merged = ["vllm", "serve", final, "--served-model-name", "router", "--dtype", dtype, *greedy]
        lines += [
            merged,
            *([[*merged, *_taking_tools(final)]] if (adapter / TOOLS_TEMPLATE_NAME).is_file() else []),
            ["python", "llama.cpp/convert_hf_to_gguf.py", final, "--outtype", "f16", "--outfile", "router.gguf"],
            ["llama-server", "-m", "router.gguf", "--alias", "router", "--temp", "0"],
            ["cp", final / MODELFILE_NAME, MODELFILE_NAME],
            ["ollama", "create", "router", "-f", MODELFILE_NAME],
        ]
    lines += [
        ["python", "llama.cpp/convert_lora_to_gguf.py", adapter, "--base", base, "--outfile", "router-lora.gguf"],
        ["llama-server", "-m", "base.gguf", "--lora", "router-lora.gguf", "--alias", "router", "--temp", "0"],
    ]
    text = "\n".join(shlex.join(" ".join(str(word).splitlines()) for word in words) for words in lines)
    fence = _fence(text, 3)
    return (
        f"{fence}bash\n{text}\n{fence}\n\n"
        "That with `--tool-call-parser`, if there is one, answers requests with OpenAI's `tools` by `tool_calls`. "
        "Temperature 0: with sampling, answers are worse. `base.gguf` is the base, converted as the merged model is; "
        "`--base` names its folder. Ollama has not been tried. Each server takes token ids too, which are exact "
        "whatever a user types. Check it: `python evaluate.py --endpoint URL --served-model router`."
    )


def _taking_tools(folder: Path) -> list[object]:
    """Return vLLM's options for requests with `tools`."""
    files = ["--chat-template", folder / TOOLS_TEMPLATE_NAME, "--tool-parser-plugin", folder / VLLM_PARSER_NAME]
    return [*files, "--tool-call-parser", "tool_aware", "--enable-auto-tool-choice"]


def _merged_model(merged: Mapping[str, Any], adapter: Path) -> str:
    folder, into, dtype, check = adapter.parent / FINAL_MODEL_FOLDER, merged["into"], merged["dtype"], merged["check"]
    text = f"{code(folder)} is the base with this adapter merged into its {into} weights, in {dtype}."
    if check:
        equal = check["rows"] - len(check["different"])
        text += (
            f" It chose the same tool as base + adapter on {equal} of {check['rows']} rows of {plain(check['file'])}."
        )
    return text


def plain(text: object) -> str:
    """Return a text as one line that Markdown and HTML show as it is: a name may hold marks of either."""
    line = " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())
    return _MARKS.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: object) -> str:
    """Return a text as one line of code in Markdown, whatever backticks are in it."""
    line = " ".join("".join(mark if mark.isprintable() else " " for mark in str(text)).split())
    fence = _fence(line, 1)
    edge = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{edge}{line}{edge}{fence}"


def _fence(text: str, least: int) -> str:
    """Return more backticks than stand together in `text`."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def write_run_card(output_dir: Path, facts: RunFacts, fallbacks: Fallbacks) -> None:
    """Draw the curves and write the card: beside them, and into the adapter's folder, which is what people upload.

    Each that cannot be written is a fallback.
    """
    base, logged, picture = facts.config.model.name, list[dict[str, Any]](), None
    with _optional("the curves", fallbacks):
        metrics = output_dir / METRICS_NAME
        logged, _ = read_metrics(metrics)
        title = f"{base}, LoRA r={facts.config.lora.r}, {facts.steps:,} steps"
        curves = claimed(output_dir, CURVES_NAME, fallbacks)
        draw_curves(metrics, curves, title=title, exported_step=facts.exported_step)
        picture = CURVES_NAME
    facts = replace(facts, fallbacks=tuple(fallbacks))
    with _optional("the run card", fallbacks):
        write_text(claimed(output_dir, CARD_NAME, fallbacks), render_card(facts, logged, picture=picture))
        say(f"{output_dir / CARD_NAME}: the run in figures and curves")
    with _optional("the adapter's card", fallbacks):
        write_text(facts.adapter / CARD_NAME, render_card(facts, logged))


@contextlib.contextmanager
def _optional(what: str, fallbacks: Fallbacks) -> Iterator[None]:
    """Turn an error into a fallback: a training is finished without its pictures."""
    try:
        yield
    except Exception as error:  # of the file system, matplotlib and its fonts
        reason = error.strerror if isinstance(error, OSError) else None
        fallbacks.add(f"{what} cannot be written: {reason or ' '.join(str(error).split())[:_LONGEST_REASON]}")


def device_name() -> str:
    """Return the name of what this process computes on: its GPUs, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def license_of(model: ModelSection) -> str | None:
    """Return the licence that the base model's own card names; None if the card is not on this machine."""
    if Path(model.name).is_dir():
        card = Path(model.name) / CARD_NAME
    else:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model.name, CARD_NAME, revision=model.revision)
        card = Path(found) if isinstance(found, str) else Path()
    if not card.is_file():
        return None
    try:
        front, end, _ = card.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---")
        values = yaml.safe_load(front) if end else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # somebody else's file, and of no other use here
        return None
    license_name = values.get("license") if isinstance(values, dict) else None
    return license_name if isinstance(license_name, str) else None
