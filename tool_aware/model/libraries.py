"""The libraries that load models: silent about what asks for no action, their errors as those of the files read."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from tool_aware.console import UserError
from tool_aware.library_imports import quiet_loggers


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' own progress bars and hints while active; none of them asks for an action."""
    from transformers.utils import logging as transformers_logging

    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with quiet_loggers("bitsandbytes", "transformers", "accelerate", "torchao"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars_were_on:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def library_errors(
    what: str, where: str, fix: str, kinds: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Raise a UserError in place of what a library raises, of these `kinds`, on files that it did not write."""
    try:
        yield
    except (UserError, ImportError, MemoryError):
        raise
    except kinds as error:
        if isinstance(error, OSError) and error.strerror:  # a permission, a full disk: they say it themselves
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"{what}: {' '.join(lines[:2])[:300]}", where=where, fix=fix) from error
