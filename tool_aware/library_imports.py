"""Heavy libraries imported when they are needed, and no more of them than is needed."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tool_aware.stage_times import IMPORTS, stage

_unneeded: set[str] = set()  # libraries that this process leaves out


@stage(IMPORTS)
def import_libraries(*names: str) -> None:
    """Import heavy libraries now, which would else be counted to the first stage that needs them.

    Garbage is not collected meanwhile: nothing of a module is garbage, and looking for it takes a sixth of the time.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        with quiet_loggers("bitsandbytes"):  # which recommends a library on some processors
            for name in names:
                with compiled_at_first_call() if sys.modules.get("torch") else contextlib.nullcontext():
                    importlib.import_module(name)
    finally:
        gc.freeze()  # modules are not looked at again
        if was_collecting:
            gc.enable()


@contextlib.contextmanager
def quiet_loggers(*libraries: str) -> Iterator[None]:
    """Silence the hints that these libraries log while active; none of them asks for an action."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def compiled_at_first_call() -> Iterator[None]:
    """Delay what `torch.compile` does with a function that it is given in this context to the first call of it.

    bitsandbytes passes functions to it while it is imported, and the compiler's own import is a fifth of all imports.
    On a GPU those functions are not called.
    """
    import torch

    compile_now = torch.compile

    def compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(compile_later, **options)
        if not inspect.isfunction(function):
            return compile_now(function, **options)
        compiled = functools.cache(lambda: compile_now(function, **options))

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            return compiled()(*args, **keywords)

        return call

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now


def load_no_models() -> None:
    """Declare that this process only tokenises: `import_transformers` then leaves torch out."""
    _unneeded.add("torch")


def import_transformers() -> None:
    """Import transformers, without torch where no model is loaded: its tokenizers need none.

    That takes less than half of the time. transformers does not find torch later either, so this is for processes of
    their own.
    """
    if "torch" not in _unneeded or "torch" in sys.modules or "transformers" in sys.modules:
        import_libraries("transformers")
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # one says that there is no torch
    with left_out("torch"):
        import_libraries("transformers.models.auto.tokenization_auto")


@contextlib.contextmanager
def left_out(*names: str) -> Iterator[None]:
    """Hide `names`, not imported yet, from libraries imported in this context, which can do without them."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # `import` takes None for not installed
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
