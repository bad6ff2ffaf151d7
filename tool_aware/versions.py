"""Versions that a result depends on: of the toolkit, of Python, of the libraries."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from pathlib import Path

import tool_aware

VERSION = tool_aware.__version__
_REPOSITORY = Path(__file__).resolve().parent.parent
TRAINING_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
_LIBRARIES = (*TRAINING_LIBRARIES, "tokenizers", "numpy", "psycopg2-binary")


def git_commit() -> str | None:
    """Return the commit of this clone, with `-dirty` if files have changed; None for an installed package."""
    if not (_REPOSITORY / ".git").exists():  # site-packages may lie in somebody else's repository
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that results depend on. Imports none of them."""
    from importlib import metadata

    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def toolkit_version() -> str:
    """Return the version of this toolkit, and the commit in a clone: `1.0.0 (commit 1b7a0c9...)`."""
    commit = git_commit()
    return f"{VERSION} (commit {commit})" if commit else VERSION


def versions_in_words() -> str:
    """Return all versions on one line, for a bug report."""
    versions = {"tool-aware-finetuning": toolkit_version(), "Python": platform.python_version(), **package_versions()}
    return ", ".join(f"{name} {version}" for name, version in versions.items())
