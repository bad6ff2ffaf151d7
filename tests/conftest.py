"""What tests of all rooms share: the shipped config, the real vocabulary, a handful of rows."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.fixtures.memory import MEMORY, has_room
from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import SHARED, share_with_workers
from tool_aware import secret_values
from tool_aware.config.settings import Config, load_config
from tool_aware.library_imports import import_libraries
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import Row, write_rows
from tool_aware.tools import ToolCall

pytest_plugins = [
    "tests.fixtures.changed_tokenizer",
    "tests.fixtures.evaluate_script",
    "tests.fixtures.nvidia_driver",
    "tests.fixtures.postgres",
    "tests.fixtures.quantized_model",
    "tests.fixtures.tiny_model",
    "tests.fixtures.training",
]

# No test may fail because a machine is slow.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from threads, and busy machines lose much. Whatever the environment says: tests fork, and a
# forked process waits for ever for the threads that OpenMP had in its parent.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the demo starts its scripts: the same libraries serve them
ALL_FILES_BYTES = 4 * 2**30  # what is there at a time is far less, as each test's are deleted with it
if has_room(ALL_FILES_BYTES, for_programs=True):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)  # of tmp_path

GARBAGE_AFTER = 20_000  # objects, where Python takes 700: tests make many that live for a moment

# What takes longest begins first, so that no worker ends alone; `make test` keeps this order.
LONGEST_FIRST = (
    "test_train_tool_aware", "test_prepare_faults", "test_prepare_dataset", "test_loop", "test_trace", "test_demo",
    "test_estimate", "test_monitor", "test_fuzz", "test_secrets", "test_sandbox", "test_synthesis", "test_benchmarks",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those of `-m gpu`; start one process that imports the libraries for all workers.

    Most tests compare to the last digit what a GPU rounds in another way.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if getattr(config.option, "numprocesses", None):  # of pytest-xdist, in the process that starts the workers
        share_with_workers()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Look for no garbage: nothing that imports and collection make is any. Leave the compiler out of a whole run."""
    gc.disable()
    is_whole, distributes = session.config.args == session.config.getini("testpaths"), SHARED in os.environ
    if is_whole and ("PYTEST_XDIST_WORKER" in os.environ or not distributes):
        import_libraries("torch", "transformers", "peft")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where none can be seen."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU, and -m gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, then the other scripts, then the rest as they are."""

    def rank(item: pytest.Item) -> int:
        if item.path.stem in LONGEST_FIRST:
            return LONGEST_FIRST.index(item.path.stem)
        return len(LONGEST_FIRST) + (item.path.parent.name != "scripts")

    items.sort(key=rank)


TOY_CALLS = {
    "rag_retrieval": ("what does our {} policy say", "query", "The words 'our policy' ask for internal documents."),
    "web_search": ("latest news on {}", "query", "The word 'latest' asks for fresh public information."),
    "code_execution": ("compute the sum of {}", "code", "The word 'compute' asks for a calculation."),
    "direct_chat": ("tell me a joke about {}", "message", "A joke needs no tool."),
}
TOPICS = (
    "travel",
    "lunch",
    "salary",
    "parking",
    "security",
    "cats",
    "rockets",
    "chess",
    "rain",
    "tea",
    "robots",
    "music",
)


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests() -> Iterator[None]:
    """Forget the secrets that a test had: a text of the next may hold the same word."""
    yield
    secret_values._spellings.clear()
    secret_values._patterns.clear()


@pytest.fixture(scope="session")
def config() -> Config:
    """The config.yaml in the repository."""
    return load_config(REPOSITORY / "config.yaml")


@pytest.fixture(scope="session")
def tokenizer():
    """Mistral's v0.2 tokenizer."""
    from tool_aware.demo.toy_model import vocabulary_file
    from tool_aware.tokenizer import build_tokenizer

    return build_tokenizer(vocabulary_file())


@pytest.fixture(scope="session")
def toy_rows(config: Config) -> list[Row]:
    """48 rows of four easily told classes."""
    rows = []
    for topic in TOPICS:
        for tool, (form, parameter, reasoning) in TOY_CALLS.items():
            query = form.format(topic)
            call = ToolCall(tool, {parameter: query if parameter != "code" else "print(1 + 2)"}, reasoning)
            details = {"source": "custom", "tool": tool}
            rows.append(Row(render_instruction(query, config.toolbox), render_response(call), details))
    return rows


@pytest.fixture(scope="session")
def toy_data_dir(tmp_path_factory: pytest.TempPathFactory, toy_rows: list[Row]) -> Path:
    """A data folder with 32 / 8 / 8 toy rows and no manifest, as someone else would bring it."""
    folder = tmp_path_factory.mktemp("data")
    for split, part in (("train", toy_rows[:32]), ("val", toy_rows[32:40]), ("test", toy_rows[40:])):
        write_rows(folder / f"{split}.json", part)
    return folder


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what imports and collection have made out of all later searches for garbage: it stays to the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_AFTER, 10, 10)
    gc.enable()
