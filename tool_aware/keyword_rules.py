"""The agent's present rules: the first rule with a word in the query chooses the tool."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tool_aware.config.data_sections import KeywordRouterSection


def keyword_rules(router: KeywordRouterSection, tools: Sequence[str]) -> Callable[[str], str]:
    """Return a chooser by the first rule of which a word occurs in the query, among the rules of tools on offer."""
    rules = [
        (rule.tool, re.compile(rf"\b(?:{'|'.join(map(re.escape, rule.words))})\b", re.IGNORECASE))
        for rule in router.rules
        if rule.tool in tools and rule.words
    ]
    otherwise = next((tool for tool in tools if tool == router.otherwise), tools[0])
    return lambda query: next((tool for tool, words in rules if words.search(query)), otherwise)
