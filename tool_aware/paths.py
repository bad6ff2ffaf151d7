"""Names of the files and folders that the stages read and write, each written once."""

from __future__ import annotations

from pathlib import Path

# ---- every stage ------------------------------------------------------------------------------------------

MANIFEST_NAME = "manifest.json"
CARD_NAME = "README.md"  # the dataset card, the run card, the adapter's model card

# ---- stage 1: data/ ---------------------------------------------------------------------------------------

SAMPLE_NAME = "sample_raw.json"
SPLIT_REPORT_NAME = "split_report.json"
DATASET_REPORT_NAME = "dataset_report.html"
TO_LABEL_NAME = "to_label.jsonl"
PARAPHRASES_NAME = "paraphrases.jsonl"
IMPORTED_CONFIG_NAME = "imported.yaml"  # extends the config by the tools that an import has brought


def split_name(split: str) -> str:
    """Return the name of a split's file: train -> train.json."""
    return f"{split}.json"


def split_file(folder: Path, split: str) -> Path:
    """Return the path of a split's file in a data folder."""
    return folder / split_name(split)


# ---- stage 2: output/ -------------------------------------------------------------------------------------

ADAPTER_FOLDER = "lora_adapters"
FINAL_MODEL_FOLDER = "final_model"
PROMPT_TEMPLATE_NAME = "prompt_template.txt"  # what an agent fills in and sends as the user turn
CHAT_TEMPLATE_NAME = "chat_template.jinja"  # of a tokenizer, as transformers writes it
TOOLS_TEMPLATE_NAME = "chat_template_tools.jinja"  # for servers: writes a request's `tools` as the training prompt
MODELFILE_NAME = "Modelfile"  # for Ollama
VLLM_PARSER_NAME = "vllm_tool_parser.py"  # for vLLM: reads answers as tool calls
ADAPTER_RECORD_NAME = "adapter_record.json"  # in the adapter's folder: what its training wrote, and on which data
ROUTER_SETTINGS_NAME = "router.json"  # beside the weights: what an agent needs to route with them
RUN_RECORD_NAME = ".run.json"  # what runs have written into the folder, from the first file on
METRICS_NAME = "metrics.jsonl"
TENSORBOARD_FOLDER = "runs"
CURVES_NAME = "training.png"
CHECKPOINT_PREFIX = "checkpoint-"  # checkpoint-STEP, a folder
CHECKPOINT_MANIFEST_NAME = "checkpoint.json"
TRAINING_STATE_NAME = "training_state.json"
OPTIMIZER_NAME = "optimizer.safetensors"
VALIDATIONS_NAME = "validations.json"
BEST_ADAPTER_NAME = "best_adapter.safetensors"


def random_state_name(rank: int) -> str:
    """Return the name of the file with the random numbers of process `rank` in a checkpoint."""
    return f"random_state_{rank}.safetensors"


# ---- stage 3: evaluation_results/, and what it adds to the adapter -----------------------------------------

BASE_MODEL, FINETUNED_MODEL = "base_model", "finetuned_model"  # how their files begin
COMPARISON_NAME = "comparison.json"
REPORT_HTML_NAME = "report.html"
REPORT_MARKDOWN_NAME = "report.md"
GRAMMAR_GBNF_NAME = "answer.gbnf"
GRAMMAR_REGEX_NAME = "answer.regex"
PREDICTIONS_FOLDER = "predictions"
THRESHOLDS_NAME = "routing_thresholds.json"
PROBE_NAME = "probe.json"


def metrics_name(model: str) -> str:
    """Return the name of the file with a model's metrics; `model` is BASE_MODEL or FINETUNED_MODEL."""
    return f"{model}_metrics.json"


def results_name(model: str) -> str:
    """Return the name of the file with a model's verdict on each row."""
    return f"{model}_results.json"


def confusion_name(model: str) -> str:
    """Return the name of the picture of a model's confusion matrix."""
    return f"{model}_confusion.png"


# ---- names that peft and transformers give -----------------------------------------------------------------

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_PICKLE_NAME = "adapter_model.bin"  # written by old versions of peft
MODEL_CONFIG_NAME = "config.json"
MODEL_WEIGHTS_NAME = "model.safetensors"
MODEL_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
GENERATION_CONFIG_NAME = "generation_config.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
