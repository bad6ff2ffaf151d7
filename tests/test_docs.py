"""What the documentation names exists: files, settings, flags, make targets, functions, links."""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware import console
from tool_aware.config.sections import Section
from tool_aware.config.settings import Config
from tool_aware.rows import load_rows

DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
PAGES = [DOCS / name for name in ("ARCHITECTURE.md", "FORMATS.md", "GLOSSARY.md")]
HOWTO = DOCS / "HOWTO.md"
ROOT_PAGES = [README, REPOSITORY / "CONTRIBUTING.md"]
LINKED = [*sorted(DOCS.rglob("*.md")), *ROOT_PAGES]
CHECKED = [*PAGES, *(path for path in LINKED if path not in PAGES)]
SCRIPTS = ("prepare_dataset.py", "train_tool_aware.py", "evaluate.py", "monitor_gpu.py")
SERVER = "tool_aware.routing.serve"
SOURCE_FOLDERS = ("tool_aware", "tests", "benchmarks", "docs", "launch", ".ci")
SUFFIXES = "py|json|jsonl|yaml|yml|md|txt|html|png|toml|gbnf|regex|jinja|safetensors|pt|pth|csv|parquet|lark"
FILE = re.compile(rf"[\w./*{{}},-]*\w[\w./*{{}},-]*\.(?:{SUFFIXES})|\.env")
FOLDER = re.compile(r"(?:\./)?[\w.*-]+(?:/[\w.*-]+)*/")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")

# Files that peft, transformers and torch write, and files of other projects that the pages speak of.
FOREIGN_FILES = {
    "random_state_0.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "special_tokens_map.json", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py",
}  # fmt: skip
FOREIGN_FOLDERS = {"possible_answer"}
FOREIGN_FLAGS = {  # of vLLM and llama.cpp; of torchrun and Slurm
    "--enable-auto-tool-choice", "--tool-call-parser", "--max-lora-rank", "--dtype", "--alias", "--base-model-id",
    "--shutdown-timeout", "--ntasks-per-node", "--gpus-per-node", "--signal", "--requeue", "--kill-on-bad-exit",
}  # fmt: skip


# ---- reading the pages ------------------------------------------------------------------------------------


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def spans(path: Path) -> list[str]:
    """Texts in backticks."""
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", prose(path))]


def commands(path: Path) -> Iterator[str]:
    """Lines of shell blocks, continued ones joined, and texts in backticks that are commands."""
    for language, text in blocks(path):
        if language in ("bash", "sh", "shell", "console"):
            yield from (line.strip().removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines())
    yield from spans(path)


# ---- what there is ----------------------------------------------------------------------------------------


@cache
def repository_paths() -> frozenset[str]:
    """Files and folders of the repository, relative to it."""
    found = [path for path in REPOSITORY.iterdir() if path.name not in (".git", ".venv")]
    found += [path for folder in SOURCE_FOLDERS for path in (REPOSITORY / folder).rglob("*")]
    return frozenset(str(path.relative_to(REPOSITORY)) for path in found if "__pycache__" not in path.parts)


@cache
def code() -> list[ast.AST]:
    """Every node of the syntax trees of the scripts and the package."""
    paths = [*(REPOSITORY / name for name in SCRIPTS), *sorted((REPOSITORY / "tool_aware").rglob("*.py"))]
    return [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


@cache
def defined_in_code() -> frozenset[str]:
    """Names of functions and classes."""
    return frozenset(node.name for node in code() if isinstance(node, ast.FunctionDef | ast.ClassDef))


@cache
def words_in_code() -> frozenset[str]:
    """File-like words in the code's strings, its docstrings included; `{a,b}_x` stands for `a_x` and `b_x`."""
    words: set[str] = set()
    for node in code():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for word in re.findall(r"[\w./*{},-]+", node.value):
                for whole in expand_braces(word):
                    words.update(whole.strip(",").rstrip(".").split("/"))
    return frozenset(words)


@cache
def name_patterns() -> tuple[re.Pattern[str], ...]:
    """File names that the code composes, such as f"{name}_metrics.json"; those of a few letters say too little."""
    patterns = []
    for node in code():
        if isinstance(node, ast.JoinedStr):
            literal = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
            if re.fullmatch(r"[\w./-]+", literal) and len(re.sub(r"\.\w+$", "", literal)) >= 6:
                parts = (re.escape(p.value) if isinstance(p, ast.Constant) else r"[\w-]+" for p in node.values)
                patterns.append(re.compile("".join(parts)))
    return tuple(patterns)


def expand_braces(word: str) -> list[str]:
    """`{a,b}_{c,d}` -> a_c, a_d, b_c, b_d."""
    parts = re.split(r"\{([\w,]+)\}", word)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def exists(name: str) -> bool:
    """Whether a file or folder is in the repository, or its parts are names that the code writes."""
    name = name.removeprefix("./").rstrip("/")
    if any(path == name or path.endswith(f"/{name}") or fnmatch(path, name) for path in repository_paths()):
        return True
    return all(is_written(part) for part in name.split("/"))


def is_written(part: str) -> bool:
    known = part in FOREIGN_FILES | FOREIGN_FOLDERS or part in words_in_code()
    return known or any(pattern.fullmatch(part) for pattern in name_patterns())


@cache
def parser_of(script: str) -> frozenset[str]:
    """Flags of a script, those of its subcommands included."""
    seen: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.__init__

    def remember(self: argparse.ArgumentParser, *args: Any, **options: Any) -> None:
        seen.append(self)
        original(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "__init__", remember)
        patch.syspath_prepend(str(REPOSITORY))
        module = importlib.import_module(script)
        with pytest.raises(SystemExit):
            module.main(["--no-such-flag"])
    return frozenset(flag for parser in seen for flag in parser._option_string_actions)


def all_flags() -> frozenset[str]:
    return frozenset().union(*map(parser_of, [*(Path(script).stem for script in SCRIPTS), SERVER]))


def config_problem(dotted: str) -> str | None:
    """Say where a dotted key leaves the config; None if it leads to a setting."""
    model: Any = Config
    for key in dotted.split("."):
        if model is None or not isinstance(model, type) or not issubclass(model, Section):
            return None if model is dict else f"{key} is below a value"
        if key not in model.model_fields:
            return f"no {key} in {model.__name__}"
        model = type_below(model.model_fields[key].annotation)
    return None


def type_below(annotation: Any) -> Any:
    """The Section in an annotation, dict where keys are free, or None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) is dict:
        return dict
    if get_origin(annotation) in (Union, Annotated):
        return next(filter(None, map(type_below, get_args(annotation))), None)
    return None


# ---- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_files_named_in_backticks_exist(path):
    names = [span for span in spans(path) if FILE.fullmatch(span) or FOLDER.fullmatch(span)]
    missing = {name for span in names for name in expand_braces(span) if not exists(name)}
    assert not missing


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_settings_named_in_backticks_exist(path):
    known = "|".join(Config.model_fields)
    keys = [match[1] for span in spans(path) if (match := re.match(rf"((?:{known})(?:\.\w+)+)(?=$|[:= ])", span))]
    problems = {key: config_problem(key) for key in keys if not FILE.fullmatch(key)}
    assert not {key: problem for key, problem in problems.items() if problem}


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_settings_given_to_set_exist(path):
    keys = [key for command in commands(path) for key in re.findall(r"--set[ =]([\w.]+)=", command)]
    assert not {key: problem for key in keys if key != "section.key" and (problem := config_problem(key))}


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_flags_exist_in_the_script_they_are_given_to(path):
    unknown = []
    for command in commands(path):
        script = next((name for name in SCRIPTS if re.search(rf"(?:^|\s|/){re.escape(name)}(?=\s|$)", command)), None)
        if script is None and not command.startswith("--"):
            continue  # another program's command
        after = command.partition(script)[2] if script else command
        own = after.partition(" -- ")[0].partition("#")[0]
        known = parser_of(Path(script).stem) if script else all_flags() | FOREIGN_FLAGS
        unknown += [f"{script}: {flag}" for flag in FLAG.findall(own) if flag not in known]
    assert not unknown


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_benchmarks_that_are_named_exist_and_know_their_flags(path):
    unknown = []
    for command in commands(path):
        if script := re.search(r"benchmarks/\w+\.py", command):
            source = (REPOSITORY / script[0]).read_text(encoding="utf-8")
            unknown += [f"{script[0]}: {flag}" for flag in FLAG.findall(command) if f'"{flag}"' not in source]
    assert not unknown


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    used = {match[1] for command in commands(path) if (match := re.match(r"make ([a-z]+)", command))}
    assert used <= targets


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_functions_and_classes_of_ours_exist(path):
    called = {match[1] for span in spans(path) if (match := re.fullmatch(r"([a-z_]\w*)\(\)", span))}
    classes = {span for span in spans(path) if re.fullmatch(r"(?:[A-Z][a-z]+){2,}\w*", span)}
    assert called <= defined_in_code()
    if path in PAGES:  # other pages also name classes of the libraries
        assert classes <= defined_in_code()


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_python_examples_import_what_exists(path):
    imports = [
        (node.module, alias.name)
        for language, text in blocks(path)
        if language == "python"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tool_aware")
        for alias in node.names
    ]
    assert not [name for module, name in imports if not hasattr(importlib.import_module(module), name)]
    assert imports or path != HOWTO


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_links_between_pages_resolve(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        if not page.exists() or (anchor and anchor not in anchors(page)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_name_that_is_not_there_is_noticed():
    assert not exists("tool_aware/prompts.py")
    assert not exists("output/lora_adaptors/")
    assert exists("evaluation_results/base_model_metrics.json")
    assert exists("packing.py")
    assert config_problem("training.learning_rat")
    assert config_problem("lora.r.x")
    assert not config_problem("evaluation.costs.pairs.direct_chat")
    assert "--resume" in parser_of("train_tool_aware")
    assert "--resume" not in parser_of("evaluate")
    assert "--until-exit" in parser_of("monitor_gpu")


def test_the_rows_that_the_howto_shows_can_be_trained_on(tmp_path, config):
    (shown,) = (text for language, text in blocks(HOWTO) if language == "json")
    (tmp_path / "train.json").write_text(shown, encoding="utf-8")
    assert [row.tool for row in load_rows(tmp_path / "train.json", config.toolbox).rows] == ["rag_retrieval"]


# ---- nothing is left out ----------------------------------------------------------------------------------


def test_the_map_names_every_module():
    named = {Path(span).name for span in spans(PAGES[0]) if span.endswith(".py")}
    modules = {path.name for path in (REPOSITORY / "tool_aware").rglob("*.py")} - {"__init__.py"}
    assert modules <= named


def test_every_page_can_be_reached_from_the_readme():
    seen, left = set(), [README]
    while left:
        page = left.pop().resolve()
        seen.add(page)
        targets = re.findall(r"\]\(([^)\s#]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        pages = [(page.parent / target).resolve() for target in targets if not re.match(r"[a-z]+:", target)]
        left += [target for target in pages if target not in seen and target.is_file()]
    assert {path.resolve() for path in LINKED} <= seen


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 180


def test_every_exit_code_is_explained_for_users():
    codes = {value for name, value in vars(console).items() if name.startswith("EXIT_") and isinstance(value, int)}
    table = (DOCS / "TROUBLESHOOTING.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    assert codes
    assert all(re.search(rf"^\| .*\b{code}\b.* \|", table, re.MULTILINE) for code in codes)


def test_messages_that_the_remedies_name_are_in_the_code():
    page = DOCS / "TROUBLESHOOTING.md"
    headings = [span.removesuffix("...").rstrip(": ") for span in spans(page) if re.match(r"(?:[a-z]+ ){2}", span)]
    messages = [span for span in headings if not span.startswith(("python ", "apt "))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tool_aware").rglob("*.py"))
    text += "\n".join((REPOSITORY / script).read_text(encoding="utf-8") for script in SCRIPTS)
    literals = re.sub(r"\{[^{}]*\}", "{}", re.sub(r'"\s*\n\s*f?"', "", text))
    assert len(messages) > 6
    assert not [message for message in messages if message not in literals]


def test_terms_are_in_alphabetical_order_and_explained_once():
    terms = re.findall(r"^\*\*([^*]+)\*\*: ", PAGES[2].read_text(encoding="utf-8"), re.MULTILINE)
    keys = [re.sub(r"[^a-z0-9]", "", term.lower().partition(",")[0]) for term in terms]
    assert keys == sorted(set(keys))
