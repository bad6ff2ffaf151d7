"""The chat template that writes a request's `tools` as the training prompt, for vLLM and llama.cpp.

It puts the model's own template behind a beginning that makes one user turn of the whole conversation, in the words of
prompt.py. Tools are those of the training: it writes their lines as trained, in the order of the training, whatever
the request says about them, and refuses others. Without `tools` it is the model's own template.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import TEMPLATE_SETTINGS, encode_prompt
from tool_aware.prompt import Turn, escape_controls, render_instruction, render_preamble, render_question
from tool_aware.router_settings import RouterSettings
from tool_aware.tools import Tool, Toolbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = ("Where is our travel policy?", "  17 * 23\n= [INST] ü日本\n")  # have to get the trained ids

# Jinja that transformers' sandbox and llama.cpp's interpreter both read: no filter or method that only one of them has.
# It does not loop over parts of a content: vLLM would see that and send every content as a list, to own templates too.
_BEGINNING = """\
{%- for message in messages %}{% if message['content'] is string %}{% endif %}{% endfor %}
{%- if tools %}
  {%- set enable_thinking = false %}
  {%- set known = KNOWN %}
  {%- set controls = CONTROLS %}
  {%- set said = namespace(names=[], lines=[], turns=[], shown=[], query='', tool='', answers=0, \
last='', left=MAX_TOKENS) %}
  {%- for tool in tools %}
    {%- set function = tool['function'] if tool['function'] else tool %}
    {%- set said.names = said.names + [function['name']] %}
    {%- set own = namespace(parameters=none) %}
    {%- for entry in known %}{% if entry['name'] == function['name'] %}
      {%- set own.parameters = entry['parameters'] %}{% endif %}{% endfor %}
    {%- if own.parameters is none %}
      {{- raise_exception('tools: the model was not trained with ' + function['name'] + '; it knows NAMES') }}
    {%- endif %}
    {%- if function['parameters'] and function['parameters']['properties'] %}
      {%- for name in function['parameters']['properties'] %}{% if name not in own.parameters %}
        {{- raise_exception('tools: the model knows no parameter ' + name + ' of ' + function['name']) }}
      {%- endif %}{% endfor %}
    {%- endif %}
  {%- endfor %}
  {%- for entry in known %}{% if entry['name'] in said.names %}
    {%- set said.lines = said.lines + [entry['line']] %}{% endif %}{% endfor %}
  {%- for message in messages if message['role'] not in ['system', 'developer'] %}
    {%- set said.last = message['role'] %}
    {%- if message['role'] == 'user' %}
      {%- if said.query %}
        {%- set tool = said.tool or (NO_TOOL if said.answers else '(none)') %}
        {%- set said.turns = said.turns + [[tool, said.query]] %}
      {%- endif %}
      {%- set text = namespace(of=message['content']) %}
      {%- if text.of is not string %}
        {%- set parts = text.of or [] %}
        {%- if parts | rejectattr('type', 'equalto', 'text') | list | length %}
          {{- raise_exception('messages: a part of a user turn is no text') }}
        {%- endif %}
        {%- set text.of = parts | map(attribute='text') | join('\\n') %}
      {%- endif %}
      {%- for pair in controls %}{% set text.of = text.of.replace(pair[0], pair[1]) %}{% endfor %}
      {%- set said.query = text.of.strip() %}
      {%- set said.tool = '' %}
      {%- set said.answers = 0 %}
    {%- elif message['role'] == 'assistant' %}
      {%- set said.answers = said.answers + 1 %}
      {%- if message['tool_calls'] and not said.tool %}
        {%- set said.tool = message['tool_calls'][0]['function']['name'] %}
      {%- endif %}
    {%- endif %}
  {%- endfor %}
  {%- if said.last == 'tool' %}
    {{- raise_exception('messages: the last one is the result of a tool; this model chooses tools and writes no \
answers: let your chat model answer') }}
  {%- endif %}
  {%- if said.last != 'user' or not said.query %}
    {{- raise_exception('messages: the last one must be a user turn with a text; that is what a tool is chosen for') }}
  {%- endif %}
  {%- for turn in said.turns[::-1] %}
    {%- set line = namespace(parts=[]) %}
    {%- for part in turn[1].replace('\\r', '\\n').split('\\n') %}{% if part.strip() %}
      {%- set line.parts = line.parts + [part.strip()] %}{% endif %}{% endfor %}
    {%- set text = line.parts | join(' ') %}
    {%- if text | length > 400 %}{% set text = text[:400].rstrip() + '…' %}{% endif %}
    {%- set text = '- ' + turn[0] + ': ' + text %}
    {%- set said.left = said.left - 29 * (text | length) %}
    {%- if said.left >= 0 and said.shown | length < MAX_TURNS %}{% set said.shown = [text] + said.shown %}{% endif %}
  {%- endfor %}
  {%- set earlier = (HISTORY + (said.shown | join('\\n'))) if said.shown else '' %}
  {%- set turn = HEAD + (said.lines | join('\\n')) + TAIL + earlier + QUERY + said.query %}
  {%- set messages = [{'role': 'user', 'content': turn}] %}
  {%- set tools = none %}
{%- endif %}"""


def tools_template(tokenizer: PreTrainedTokenizerBase, settings: RouterSettings) -> str | None:
    """Return the template; None where it does not give the ids of the training, or the model has several templates."""
    own, tools = tokenizer.chat_template, settings.toolbox
    if not isinstance(own, str):
        return None
    template = _beginning(tokenizer, settings) + own
    offered: list[Any] = [{"type": "function", "function": {"name": name}} for name in tools.names]
    for query in _PROBES:
        messages = [{"role": "user", "content": query}]
        try:
            rendered: Any = tokenizer.apply_chat_template(
                messages,
                tools=offered,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
                **TEMPLATE_SETTINGS,
            )
        except Exception:  # of jinja: two templates that do not go together
            return None
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if ids != encode_prompt(tokenizer, render_instruction(query, tools)):
            return None
    return template


def _beginning(tokenizer: PreTrainedTokenizerBase, settings: RouterSettings) -> str:
    tools, limits = settings.toolbox, settings.conversation
    head, tail = _around_tools()
    known = [
        {"name": tool.name, "line": _line(tool, head, tail), "parameters": list(tool.properties)} for tool in tools
    ]
    marks = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    marks = {mark for mark in marks if len(mark) > 1}
    pairs = [["[INST]", "(INST)"], ["[/INST]", "(/INST)"]]
    pairs += [[mark, escape_controls(mark, marks)] for mark in sorted(marks, key=len, reverse=True)]
    label = render_question("")
    history = render_question("", [Turn("q", "t")]).removesuffix(f"- t: q{label}")
    values = {
        "KNOWN": known,
        "CONTROLS": pairs,
        "HISTORY": history,
        "HEAD": head,
        "TAIL": tail,
        "QUERY": label,
        "NO_TOOL": settings.no_tool or "(none)",
        "MAX_TURNS": limits.max_turns,
        "MAX_TOKENS": 100 * limits.max_tokens,
    }
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    written["NAMES"] = ", ".join(tools.names)
    return re.sub(rf"\b({'|'.join(written)})\b", lambda found: written[found[0]], _BEGINNING)


def _around_tools() -> tuple[str, str]:
    """Return what the prompt has before and after the lines of the tools."""
    head, mark, tail = render_preamble(Toolbox([])).partition("Tools:\n")
    return head + mark, tail


def _line(tool: Tool, head: str, tail: str) -> str:
    return render_preamble(Toolbox([tool])).removeprefix(head).removesuffix(tail)
