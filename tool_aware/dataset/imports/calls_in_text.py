"""Finds tool calls that are written in an assistant's text, in the syntaxes that models are trained on.

    Hermes, Qwen    <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    Llama 3.1       <function=name>{...}</function>, <|python_tag|>{"name": ..., "parameters": {...}}
    Mistral         [TOOL_CALLS] [{"name": ..., "arguments": {...}}], [TOOL_CALLS]name[ARGS]{...}
    Glaive          <functioncall> {"name": ..., "arguments": '{...}'}
    ToolACE, BFCL   [name(parameter="value")]
    any             an object with name and arguments that is the whole text, also in a ``` block
    this toolkit    Tool: name, Parameters: {...}, Reasoning: ...

A text with such syntax that cannot be read exactly is left out: it is no plain answer.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from tool_aware.dataset.imports.foreign_calls import arguments_of, calls_of
from tool_aware.dataset.imports.left_out import Call, LeftOut, in_words, usable_name
from tool_aware.prompt import parse_response
from tool_aware.text_files import parse_json

_MARK = re.compile(
    r"</?tool_calls?\b|<\|?tool[_▁]calls?|<｜tool|</?function[=_]|</?function_?calls?>|\[/?TOOL_CALLS?\]|\[ARGS\]"
    r"|<\|python_tag\|>|<\|plugin\|>|functools\[|<invoke\b|✿FUNCTION✿|<start_function_call>|\[AVAILABLE_TOOLS\]"
    r"|<\|(?:channel|constrain|message|call|recipient|content)\|>|\bto=functions\.|</?use_mcp_tool>",
    re.IGNORECASE,
)
_REACT = re.compile(r"^[ \t*]*Action(?:[ _]Input)?[ \t*]*:", re.MULTILINE | re.IGNORECASE)
_NAME_KEY = re.compile(
    r"""['"](?:name|function|tool|action|tool_name|function_name|tool_calls?|function_call)\\*['"]\s*:"""
)
_ARGUMENTS_KEY = re.compile(r"""['"](?:arguments|parameters|args|kwargs|input|action_input|tool_input)\\*['"]\s*:""")
_FENCED = re.compile(r"\s*```(?:json|tool_call|python|tool_code)?\s*\n(.*?)\n?```\s*", re.DOTALL)
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_LLAMA = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_GLAIVE = re.compile(r"<function_?call>(.*?)(?:</function_?call>|<\|endoftext\|>|$)", re.DOTALL)
_GLAIVE_QUOTED = re.compile(r"""\s*\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*'(.*)'\s*\}\s*""", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_NAMED = re.compile(r"\s*([^\s\[{]+?)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?=\{)")
_PYTHON_TAG = "<|python_tag|>"
_ENDINGS = re.compile(r"(?:</s>|<\|eot_id\|>|<\|eom_id\|>|<\|im_end\|>|<\|endoftext\|>|\s)+$")
_BRACKETED = re.compile(r"\s*\[\s*([^()\[\]{}\"']+?)\s*\((.*)\)\s*\]\s*", re.DOTALL)
_CALLED = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\((.*)\)\s*", re.DOTALL)
_PYTHON_WORDS = {"true": True, "false": False, "null": None}


def calls_in(text: str, names: Collection[str], field: str) -> tuple[list[Call], str]:
    """Return the calls in a text and what is said beside them; no calls for a plain text.

    `names` are those of the tools on offer. Raises LeftOut for tool syntax that cannot be read.
    """
    ours = parse_response(text).call
    if ours:
        return [Call(ours.tool, dict(ours.parameters))], ours.reasoning
    for pattern in (_BLOCK, _LLAMA, _GLAIVE):
        if pattern.search(text):
            calls = [call for match in pattern.finditer(text) for call in _in_block(match, field)]
            return _finished(calls, pattern.sub(" ", text), field)
    if _MISTRAL in text:
        said, _, rest = text.partition(_MISTRAL)
        return _finished(_of_mistral(rest, field), said, field)
    if _PYTHON_TAG in text:
        said, _, rest = text.partition(_PYTHON_TAG)
        return _finished(_of_json(_without_ending(rest), field), said, field)
    if _MARK.search(text):
        raise _unreadable(text, field)
    fenced = _FENCED.fullmatch(text)
    whole = _without_ending(fenced[1] if fenced else text)
    if _looks_like_call(whole) and whole[:1] in ("{", "["):
        return _of_json(whole, field), ""
    if calls := _of_python(whole, names, field):
        return calls, ""
    if _looks_like_call(text) or len(_REACT.findall(text)) > 1 or _mentions_call(text, names):
        raise _unreadable(text, field)
    return [], text


def _looks_like_call(text: str) -> bool:
    return bool(_NAME_KEY.search(text) and _ARGUMENTS_KEY.search(text))


def _mentions_call(text: str, names: Collection[str]) -> bool:
    """Check for a tool on offer with something like arguments: an answer that writes calls in some other way.

    `name(`, the name alone before `{` or a ``` block, the name as a tag, or on a line `tool: name`.
    """
    return bool(names) and _call_of(tuple(names)).search(text) is not None


@lru_cache(maxsize=4096)
def _call_of(names: tuple[str, ...]) -> re.Pattern[str]:
    any_name = "|".join(map(re.escape, names))
    return re.compile(
        rf"(?:{any_name})\(|(?<![\w-])(?:{any_name})(?![\w-])[^\w{{]{{0,30}}?(?:\{{|```)"
        rf"|<({any_name})>.*</\1>|^\W*(?:tool|function|action)(?:[ _]name)?\W*[:=]\W*(?:{any_name})\W*$",
        re.DOTALL | re.MULTILINE | re.IGNORECASE,
    )


def _without_ending(text: str) -> str:
    return _ENDINGS.sub("", text).strip()


def _finished(calls: list[Call], said: str, field: str) -> tuple[list[Call], str]:
    said = _without_ending(said)
    if _MARK.search(said) or not calls:
        raise _unreadable(said, field)
    return calls, said


def _unreadable(text: str, field: str) -> LeftOut:
    return LeftOut("tool syntax in the text that cannot be read", field, in_words(text))


def _in_block(match: re.Match[str], field: str) -> list[Call]:
    if match.re is _LLAMA:
        return [Call(usable_name(match[1]), arguments_of(match[2].strip(), field))]
    quoted = _GLAIVE_QUOTED.fullmatch(match[1])
    if quoted:
        return [Call(usable_name(quoted[1]), arguments_of(quoted[2], field))]
    named = _LLAMA.fullmatch(match[1].strip())
    return _in_block(named, field) if named else _of_json(match[1], field)


def _of_json(text: str, field: str) -> list[Call]:
    """Return the calls of a JSON text, or of a Python literal, which Hermes' data have."""
    value: Any
    try:
        value = parse_json(text.strip())
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise _unreadable(text, field) from None
    if not isinstance(value, dict | list):
        raise _unreadable(text, field)
    if isinstance(value, dict) and "name" not in value and "function" not in value:
        raise _unreadable(text, field)
    return calls_of(value, field)


def _of_mistral(text: str, field: str) -> list[Call]:
    text = _without_ending(text)
    if text.startswith(("[", "{")):
        return _of_json(text, field)
    calls = []
    for part in text.split(_MISTRAL):
        named = _MISTRAL_NAMED.match(part)
        if not named:
            raise _unreadable(text, field)
        calls.append(Call(usable_name(named[1]), arguments_of(_without_ending(part[named.end() :]), field)))
    return calls


def _of_python(text: str, names: Collection[str], field: str) -> list[Call]:
    """Return the call of a text that is `[name(a=1)]` or `name(a=1)`; [] for any other text.

    A text in brackets is a call whatever its name, so that a call of a tool that is missing is no plain answer.
    """
    match = _BRACKETED.fullmatch(text) or _CALLED.fullmatch(text)
    if not match:
        return []
    is_offered = usable_name(match[1]) in names
    try:
        parsed = ast.parse(f"f({match[2]})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        if is_offered:
            raise _unreadable(text, field) from None
        return []
    if isinstance(parsed, ast.Tuple):
        raise LeftOut("several tool calls", field)
    if not isinstance(parsed, ast.Call) or parsed.args or any(word.arg is None for word in parsed.keywords):
        raise _unreadable(text, field)
    try:
        arguments = {str(word.arg): _literal(word.value) for word in parsed.keywords}
    except (ValueError, TypeError, RecursionError):
        raise _unreadable(text, field) from None
    return [Call(usable_name(match[1]), arguments)]


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, in which `true`, `false` and `null` are words as well."""
    if isinstance(node, ast.Name) and node.id in _PYTHON_WORDS:
        return _PYTHON_WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("unpacking")
        return {str(_literal(key)): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    return ast.literal_eval(node)
