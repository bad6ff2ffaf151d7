"""The rows that stages pass on, and how files are written so that nobody ever reads half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tool_aware.console import UserError
from tool_aware.prompt import ParsedAnswer, parse_response, query_of, render_response, unwrap_instruction
from tool_aware.tools import Toolbox

SPLITS = ("train", "val", "test")
MANIFEST_NAME = "manifest.json"
PROBLEMS_SHOWN = 20

# What libraries say of a full disk instead of raising OSError: safetensors and tokenizers, in Rust, and torch.save,
# which has lost the reason by then, but fails at writing for hardly any other.
_FULL_DISK_TEXTS = ("os error 28", "No space left on device", "os error 122", "inline_container.cc")

_REPOSITORY = Path(__file__).resolve().parent.parent
_VERSIONED_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "tokenizers",
    "numpy",
    "psycopg2-binary",
)


# ---- rows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One example as the JSON files hold it; `metadata` has at least `source` and `tool`."""

    instruction: str
    response: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """What the user typed: the end of the instruction, or all of it in a file someone else wrote."""
        return query_of(self.instruction)

    @property
    def answer(self) -> ParsedAnswer:
        """The response, read."""
        return parse_response(self.response)

    @property
    def tool(self) -> str:
        """Name of the right tool."""
        return self.metadata["tool"]

    @property
    def acceptable_tools(self) -> tuple[str, ...]:
        """Every tool that counts as right; more than one only where the query is truly ambiguous."""
        return tuple(self.metadata.get("acceptable_tools") or (self.tool,))


@dataclass(frozen=True)
class LoadedRows:
    """The rows of one file, its sha256, and in how many of them something was brought into the form that is trained."""

    rows: list[Row]
    sha256: str
    unwrapped: int = 0  # instructions that carried a Mistral wrapper
    respelled: int = 0  # responses with other spacing or other JSON than `render_response` writes


def load_rows(path: Path, tools: Toolbox) -> LoadedRows:
    """Read a JSON array of rows, check every one of them, and write its response as `render_response` does.

    A model must not learn two spellings of one answer, and the place of the tool's name in it is relied on.

    Raises UserError with all malformed rows (the first 20 shown), or naming the command that makes the file.
    """
    if not path.is_file():
        raise UserError("not found", where=str(path), fix=_how_to_get(path))
    content = path.read_bytes()
    try:
        items = json.loads(content)
    except ValueError as error:
        raise UserError(f"is not JSON: {error}", where=str(path), fix="python prepare_dataset.py") from error
    if not isinstance(items, list) or not items:
        raise UserError("must be a non-empty JSON array of rows", where=str(path), fix="see docs/FORMATS.md")
    rows, problems, unwrapped, respelled = [], [], 0, 0
    for number, item in enumerate(items, start=1):
        row_problems = list(_row_problems(item, tools))
        if row_problems:
            problems += [f"{path}: row {number}: {problem}" for problem in row_problems]
            continue
        instruction, was_wrapped = unwrap_instruction(item["instruction"])
        unwrapped += was_wrapped
        call = parse_response(item["response"]).call
        response = render_response(call)
        respelled += response != item["response"]
        details = {"source": "custom", "tool": call.tool, **item.get("metadata", {})}
        rows.append(Row(instruction, response, details))
    if problems:
        raise UserError(listing(problems, "problem"), fix="correct these rows (docs/FORMATS.md shows a good one)")
    return LoadedRows(rows, hashlib.sha256(content).hexdigest(), unwrapped, respelled)


def _how_to_get(path: Path) -> str:
    """Name the command that makes a split file; beside files of someone else it would ask to replace those."""
    written = (read_manifest(path.parent) or {}).get("outputs", {})
    names = [f"{name}.json" for name in SPLITS]
    foreign = [name for name in names if (path.parent / name).is_file() and name not in written]
    if not foreign:
        return "python prepare_dataset.py"
    return f"write it too, with rows that {' and '.join(foreign)} of yours do not have (docs/FORMATS.md)"


def _row_problems(item: object, tools: Toolbox) -> Iterator[str]:
    if not isinstance(item, dict):
        yield f"is {type(item).__name__}, not an object"
        return
    for key in ("instruction", "response"):
        if not isinstance(item.get(key), str) or not item[key].strip():
            yield f"{key}: must be non-empty text"
    details = item.get("metadata", {})
    if not isinstance(details, dict):
        yield "metadata: must be an object"
        details = {}
    if not isinstance(item.get("response"), str) or not item["response"].strip():
        return
    answer = parse_response(item["response"])
    if not answer.call:
        yield f"response: {answer.problem}"
        return
    yield from (f"response: {problem}" for problem in tools.problems(answer.call))
    if details.get("tool", answer.tool) != answer.tool:
        yield f"metadata.tool: {details['tool']!r} but the response calls {answer.tool!r}"
    acceptable = details.get("acceptable_tools") or [answer.tool]
    if answer.tool not in acceptable:
        yield f"metadata.acceptable_tools: lacks the response's own tool {answer.tool!r}"


def listing(problems: Sequence[str], noun: str) -> str:
    """Count the problems and show the first 20, one a line."""
    lines = [
        f"{len(problems)} {noun}{'s' if len(problems) > 1 else ''}:",
        *(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN]),
    ]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"  ... and {len(problems) - PROBLEMS_SHOWN} more")
    return "\n".join(lines)


# ---- files ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError that does not say so, as of a write to a full disk, the file it is about."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def told_if_full(folder: Path, needed_bytes: Callable[[], int], *, fix: str) -> Iterator[None]:
    """Turn what any library raises when the disk is full into a UserError that tells the space needed and free.

    `folder` is what is being written and will be deleted after that, so its own files count as free.
    """
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        needed, free = needed_bytes(), shutil.disk_usage(folder).free + bytes_in(folder)
        what = f"the disk is full: at least {_size(needed)} are needed and {_size(free)} are free"
        raise UserError(what, where=str(folder.parent), fix=fix) from error


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return not isinstance(error, UserError) and any(text in str(error) for text in _FULL_DISK_TEXTS)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"


def bytes_in(folder: Path) -> int:
    """Add up the sizes of all files below `folder`; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes `path`'s place only once it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        with naming(path):
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a hidden folder beside `path` to fill; it takes `path`'s place, old content and all, once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, all of it or nothing."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, all of it or nothing."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as the JSON array that `load_rows` reads."""
    write_json(path, [asdict(row) for row in rows])


def read_json(path: Path) -> Any:
    """Read a JSON file that one of the stages wrote; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"is not JSON: {error}", where=str(path), fix="delete it and run the stage that writes it again"
        ) from error


def sha256_of(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- manifests ------------------------------------------------------------------------------------------


def write_manifest(
    directory: Path,
    *,
    stage: str,
    config: Mapping[str, Any],
    seed: int,
    started_s: float,
    inputs: Iterable[Path] = (),
    outputs: Iterable[Path] = (),
    counts: Mapping[str, Any] | None = None,
    fallbacks: Sequence[str] = (),
    **details: Any,
) -> dict[str, Any]:
    """Write `directory/manifest.json`, the record of one finished stage, and return it.

    `started_s` is the `time.time()` at which the stage began; `outputs` are listed relative to `directory`.
    `config` holds no secrets: those live in the environment only (see tool_aware.config).
    """
    manifest = {
        "stage": stage,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started_s, 1),
        "seed": seed,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "counts": dict(counts or {}),
        "fallbacks": list(fallbacks),
        **details,
        "inputs": {str(path): sha256_of(path) for path in inputs},
        "outputs": {str(path.relative_to(directory)): sha256_of(path) for path in outputs},
        "config": dict(config),
    }
    write_json(directory / MANIFEST_NAME, manifest)
    return manifest


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Read the manifest a stage left in `directory`; None where it never finished."""
    return read_json(directory / MANIFEST_NAME)


def _git_commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=_REPOSITORY, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on, as far as they are installed."""
    versions = {}
    for name in _VERSIONED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
