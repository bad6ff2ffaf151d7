"""The results of training on disk: the adapter with the prompt it was trained on, and the merged model.

The merge reads the base model's safetensors files shard by shard and tensor by tensor; the model is never in memory.
"""

from __future__ import annotations

import contextlib
import gc
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import chat_format, end_id, puts_space_before_runs
from tool_aware.config.settings import Config
from tool_aware.console import PROBLEMS_SHOWN, GateFailed, UserError, duration, say, table
from tool_aware.files import (
    atomic_folder,
    full_disk_as_user_error,
    hashes_in,
    read_json,
    sync_files,
    write_json,
    write_text,
)
from tool_aware.model.adapter_record import write_adapter_record
from tool_aware.model.base import device, dtype_named
from tool_aware.model.families import language_settings
from tool_aware.paths import (
    CARD_NAME,
    CHAT_TEMPLATE_NAME,
    GENERATION_CONFIG_NAME,
    MODEL_CONFIG_NAME,
    MODEL_WEIGHTS_INDEX_NAME,
    MODELFILE_NAME,
    PROMPT_TEMPLATE_NAME,
    ROUTER_SETTINGS_NAME,
    TOKENIZER_CONFIG_NAME,
    TOOLS_TEMPLATE_NAME,
    VLLM_PARSER_NAME,
)
from tool_aware.prompt import render_template
from tool_aware.router_settings import RouterSettings, write_router_settings
from tool_aware.stage_times import stage
from tool_aware.tokenizer import load_tokenizer
from tool_aware.training.choice import ToolNames
from tool_aware.training.export.agreement import Agreement, AsTrained, References, compare_with_trained
from tool_aware.training.export.layerwise import StreamedModel, empty_model, quantized_names
from tool_aware.training.export.merge import LoraUpdates, MergeBase, MergedWeights
from tool_aware.training.export.serving_files import write_serving_files
from tool_aware.training.export.weights import WeightFiles, base_folder, shard_header, write_shard
from tool_aware.units import GIB

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

WANTED_AGREEMENT = 0.99  # share of the rows that must get the same tool from the merged model as in training
_FULL_DISK_FIX = "free some space and run again with --resume, or go without it: --skip-final-model"
_SPARE = 1.02  # disk space needed, as a multiple of the weights: tokenizer, configs, safetensors headers


def save_adapter(
    model: PeftModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    lineage: Sequence[Mapping[str, Any]] = (),
) -> dict[str, str]:
    """Write the adapter, its record, tokenizer, prompt template and router settings into `folder`, or nothing.

    Return the sha256 of each file by name, the card left out. `lineage` is that of the record. Raises UserError if the
    disk is full.
    """
    size_bytes = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)
    fix = "free some space and run again with --resume"
    with atomic_folder(folder) as part, full_disk_as_user_error(part, lambda: size_bytes, fix=fix):
        model.save_pretrained(str(part), save_embedding_layers=False)
        tokenizer.save_pretrained(part)
        write_text(part / PROMPT_TEMPLATE_NAME, render_template(config.toolbox))
        write_router_settings(part, config)
        write_serving_files(part, tokenizer, RouterSettings.of(config))
        write_adapter_record(part, lineage, chat_format(tokenizer))
        # evaluate.py adds its results to the card, so that file is not pinned
        pinned = sorted(path for path in part.iterdir() if path.is_file() and path.name != CARD_NAME)
        written = hashes_in(part, pinned)
        sync_files(part)
    return written


@dataclass(frozen=True)
class MergeMethod:
    """A way to merge: the weights that the adapter is added to, and the precision of the result."""

    into: MergeBase
    dtype: str  # torch's name of it


@dataclass(frozen=True)
class Merged:
    """The merged model: how it was made, and how it agrees with base + adapter as trained."""

    method: MergeMethod
    measured: Mapping[MergeMethod, Agreement]  # on rows of val.json; empty if there was one method only, or no row
    checked: Agreement | None  # of the finished folder, read back
    reference: AsTrained | None  # what it was compared with

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for the manifest."""
        measured = [
            {**asdict(method), "rows": found.rows, "equal": found.equal, "divergence": _finite(found.divergence)}
            for method, found in self.measured.items()
        ]
        check = None
        if self.checked and self.reference:
            sample = self.reference.sample
            different = [sample.numbers[place] for place in self.checked.different]
            check = {"file": sample.file.name, "rows": self.checked.rows, "different": different}
        return {**asdict(self.method), "measured": measured, "check": check}

    def demand_agreement(self, tools: Sequence[str]) -> None:
        """Raise GateFailed, naming the rows, if too many of them get another tool than in training."""
        if not self.checked or not self.reference or self.checked.equal >= WANTED_AGREEMENT * self.checked.rows:
            return
        sample, before, after = self.reference.sample, self.reference.chosen, self.checked.chosen
        lines = [
            f"row {sample.numbers[place]}: {_names(before[place], tools)} as trained, "
            f"{_names(after[place], tools)} merged: {sample.queries[place][:80]}"
            for place in self.checked.different
        ]
        raise GateFailed(
            f"the merged model chooses another tool than base + adapter on {len(lines)} of {self.checked.rows} rows of "
            f"{sample.file}:\n  " + "\n  ".join(lines[:PROBLEMS_SHOWN]),
            fix="use the adapter on the quantised base"
            + ("" if self.measured else ", or --set export.merge_base=auto --set export.dtype=auto"),
        )


def _dtype_to_compare_in(stored: str) -> torch.dtype:
    """Return the dtype of torch that weights stored so are computed with: on a CPU float32, which holds them exactly.

    Most processors have no 16-bit products of one kind or the other, and imitate them slowly.
    """
    return dtype_named("float32" if device().type == "cpu" else stored)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None  # JSON has no infinity


def _names(numbers: Sequence[int], tools: Sequence[str]) -> str:
    return " or ".join(tools[number] for number in numbers)


class Merger:
    """An adapter and the base model it is merged into: measure the merge methods, merge, check the result.

    `tokenizer` is the one that the adapter's folder holds, if it is loaded.
    """

    @stage("choosing among merges")
    def __init__(
        self,
        config: Config,
        adapter: Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        hf_token: str | None = None,
    ) -> None:
        self._config, self._adapter, self._tokenizer = config, adapter, tokenizer
        self._base = base_folder(config.model, hf_token)
        self._files, self._updates = WeightFiles(self._base, device()), LoraUpdates.load(adapter)
        self._updates.check_fit(self._files)
        self._quantized = quantized_names(empty_model(self._base))

    def methods(self) -> list[MergeMethod]:
        """Return the methods that config.yaml leaves open; the first is taken if nothing can be measured."""
        export, own = self._config.export, self._files.dtype
        bases: list[MergeBase] = ["dequantized", "original"] if export.merge_base == "auto" else [export.merge_base]
        if self._config.quantization.kind == "none":
            bases = ["original"]
        dtypes = [own, *(["float16"] if own == "bfloat16" else [])] if export.dtype == "auto" else [export.dtype]
        return [MergeMethod(base, dtype) for base in bases for dtype in dtypes]

    @stage("choosing among merges")
    def measure(self, reference: AsTrained, names: ToolNames) -> dict[MergeMethod, Agreement]:
        """Compare every method with base + adapter as trained, without writing anything."""
        methods, on = self.methods(), device()
        dtypes = {method: _dtype_to_compare_in(method.dtype) for method in methods}
        empty = {dtype: empty_model(self._base, dtype) for dtype in set(dtypes.values())}
        models = [StreamedModel(empty[dtypes[method]], self._weights(method, on), on) for method in methods]
        found = compare_with_trained(reference, models, names, self._files.kept)
        return dict(zip(methods, found, strict=True))

    def save(self, method: MergeMethod, folder: Path) -> None:
        """Write the merged model, loadable by `AutoModelForCausalLM.from_pretrained(folder)`, all of it or nothing.

        Raises UserError if the disk has too little room.
        """
        with self.saved(method, folder):
            pass

    @contextlib.contextmanager
    def saved(self, method: MergeMethod, folder: Path) -> Iterator[Path]:
        """Write the merged model as `save` does, and yield where it is to be read back while the disk takes it."""
        with contextlib.ExitStack() as written:
            with stage("merging"):
                headers = {shard: shard_header(shard, dtype_named(method.dtype)) for shard in self._files.shards}
                size = sum(next(reversed(header.values()))["data_offsets"][1] for header in headers.values())
                _check_space(folder, size)
                part = written.enter_context(atomic_folder(folder))
                written.enter_context(full_disk_as_user_error(part, lambda: size, fix=_FULL_DISK_FIX))
                weights = self._weights(method, device())
                for shard, header in headers.items():
                    write_shard(part / shard.name, header, weights.__getitem__)
                index = read_json(self._base / MODEL_WEIGHTS_INDEX_NAME)
                if index:
                    index["metadata"] = {**index.get("metadata", {}), "total_size": size}
                    write_json(part / MODEL_WEIGHTS_INDEX_NAME, index)
                _write_configs(self._base, self._adapter, part, method.dtype, self._tokenizer)
                disk = written.enter_context(ThreadPoolExecutor(1))
                on_disk = disk.submit(sync_files, part)
            yield part
            with stage("merging"):
                on_disk.result()

    @stage("reading back")
    def check(self, folder: Path, reference: AsTrained, names: ToolNames) -> Agreement:
        """Read the merged model back and compare it with base + adapter as trained."""
        files = WeightFiles(folder, device())
        model = StreamedModel(empty_model(folder, _dtype_to_compare_in(files.dtype)), files, device())
        return compare_with_trained(reference, [model], names)[0]

    def _weights(self, method: MergeMethod, device: torch.device | None = None) -> MergedWeights:
        return MergedWeights(
            self._files,
            self._updates,
            self._config.quantization,
            self._quantized,
            into=method.into,
            dtype=dtype_named(method.dtype),
            device=device,
        )


def merge(merger: Merger, folder: Path, names: ToolNames, references: References) -> Merged:
    """Merge by the method that agrees best on rows of val.json; check the result on rows of test.json.

    Without rows of val.json the first method is taken; without those of test.json nothing is checked.
    """
    gc.collect()  # frees what training has left on the GPU
    if device().type == "cuda":
        import torch

        torch.cuda.empty_cache()
    val, test = references.val, references.test
    methods, started_s = merger.methods(), time.perf_counter()
    measured = merger.measure(val, names) if val and len(methods) > 1 else {}
    method = min(measured, key=lambda method: measured[method].divergence) if measured else methods[0]
    if val and measured:
        rows = [
            (tried.into, tried.dtype, f"{found.equal} of {found.rows}", f"{found.divergence:.2g}")
            for tried, found in measured.items()
        ]
        took = duration(time.perf_counter() - started_s)
        say(f"ways to merge, against base + adapter as trained, on rows of {val.sample.file} ({took}):")
        say(table(("merged into", "stored as", "same tool", "divergence, nats per token"), rows, align="<<>>"))
    started_s = time.perf_counter()
    with merger.saved(method, folder) as part:
        took = duration(time.perf_counter() - started_s)
        say(f"{folder}: the adapter merged into the {method.into} weights, in {method.dtype} ({took})")
        started_s = time.perf_counter()
        checked = merger.check(part, test, names) if test else None
        if test and checked:
            equal, took = f"{checked.equal} of {checked.rows} rows", duration(time.perf_counter() - started_s)
            say(f"read back, it chooses as base + adapter on {equal} of {test.sample.file} ({took})")
    return Merged(method, measured, checked, test)


def _write_configs(
    base: Path, adapter: Path, folder: Path, dtype: str, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Copy the base's configs without their quantisation section, and the adapter's tokenizer with its template."""
    config = read_json(base / MODEL_CONFIG_NAME)
    config.pop("quantization_config", None)
    # transformers 5 writes `dtype`, older ones and other programs read `torch_dtype`
    write_json(folder / MODEL_CONFIG_NAME, {**config, "dtype": dtype, "torch_dtype": dtype})
    for path in _tokenizer_files(base):
        shutil.copyfile(path, folder / path.name)
    served = (adapter / name for name in (ROUTER_SETTINGS_NAME, TOOLS_TEMPLATE_NAME, VLLM_PARSER_NAME, MODELFILE_NAME))
    for path in (*_tokenizer_files(adapter), *served):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    tokenizer = tokenizer or load_tokenizer(str(folder))
    _state_prefix_space(folder / TOKENIZER_CONFIG_NAME, tokenizer)
    given = read_json(base / GENERATION_CONFIG_NAME) or language_settings(config)
    write_json(folder / GENERATION_CONFIG_NAME, _greedy_generation(given, end_id(tokenizer)))


def _state_prefix_space(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write into tokenizer_config.json whether text behind a control token gets a space in front of it.

    llama.cpp takes it for granted of SentencePiece where nothing is said, and writes a space too many: the trained
    prompt begins `[1, 733, ...]`, its own `[1, 28705, 733, ...]`. transformers reads tokenizer.json instead.
    """
    gets_space = puts_space_before_runs(tokenizer)
    if gets_space is not None:
        write_json(path, {**(read_json(path) or {}), "add_prefix_space": gets_space})


def _greedy_generation(given: Mapping[str, Any], end: int) -> dict[str, Any]:
    """Return a generation config by which every program takes the likeliest token, and stops where the answer ends.

    `top_k: 1` is read by transformers, by vLLM and by llama.cpp's conversion, whatever temperature a request names;
    `temperature: 0` makes transformers warn, and vLLM and llama.cpp ignore `do_sample`. The base's own temperature
    and penalties are for prose.
    """
    ids = {key: value for key, value in given.items() if key.endswith("_token_id") and value is not None}
    stops = ids.get("eos_token_id", [])
    stops = stops if isinstance(stops, list) else [stops]
    if end not in stops:
        ids["eos_token_id"] = [end, *stops]
    return {**ids, "do_sample": True, "top_k": 1}


def _tokenizer_files(folder: Path) -> Iterator[Path]:
    names = (
        "tokenizer.json",
        "tokenizer.model",
        TOKENIZER_CONFIG_NAME,
        "special_tokens_map.json",
        CHAT_TEMPLATE_NAME,
        "preprocessor_config.json",  # of a model that reads images
        "processor_config.json",
    )
    return (folder / name for name in names if (folder / name).is_file())


def _check_space(folder: Path, needed_bytes: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes * _SPARE:
        raise UserError(
            f"the merged model needs {needed_bytes / GIB:.1f} GiB and {free / GIB:.1f} GiB are free",
            where=str(folder),
            fix=_FULL_DISK_FIX,
        )
