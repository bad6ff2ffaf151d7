"""Measure what a data folder teaches about parameters: do they follow from the query, how are programs written.

    python benchmarks/dataset_parameters.py
    python benchmarks/dataset_parameters.py --data /tmp/data --json benchmarks/results/dataset_parameters.json

Reads   config.yaml; with --data DATA/train.json, val.json and test.json
Writes  one table to stdout; with --json the same
Exit    0 done; 2 something to fix

A search text or message follows from the query if its content words stand in the query or in an earlier turn: whole
words, whatever their case (of Japanese and Chinese, any characters in a row). Function words are those that search
texts leave out. What does not follow is mostly a typing error put right in a message, or a follow-up completed in words
of its own. The skeleton of a program is its text without numbers and quoted strings.

Without --data, rows are synthesised as config.yaml says.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks run from a checkout, nothing is installed

from tool_aware.config.options import add_config_arguments  # noqa: E402
from tool_aware.config.settings import Config, load_config  # noqa: E402
from tool_aware.console import run, table  # noqa: E402
from tool_aware.dataset.synthesis.content import load_content  # noqa: E402
from tool_aware.evaluation.scoring.judgement import group_of  # noqa: E402
from tool_aware.files import write_json  # noqa: E402
from tool_aware.reasoning_text import boilerplate, quoted, stands_in  # noqa: E402
from tool_aware.rows import SPLITS, Row, load_rows  # noqa: E402

WITHOUT_SPACES = ("ja", "zh")
SEARCH_TOOLS = ("rag_retrieval", "web_search")
TEXT_OF_TOOL = {"rag_retrieval": "query", "web_search": "query", "direct_chat": "message"}
_WORD = re.compile(r"[^\W_]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_NEGATION = (
    r"\b(not|no|without|except|excluding|other than|apart from|nicht|kein\w*|ohne|außer|pas|sans|sauf|hors|sin|excepto"
    r"|salvo|non|senza|tranne|esclus\w+|não|sem|exceto|niet|geen|zonder|behalve|nie|bez|oprócz|inte|utan|utom|değil"
    r"|hariç|не|без|кроме)\b|不|除|以外|ない"
)
_CONDITION = (
    r"\b(if|when|unless|before|after|since|until|above|below|over|under|less than|more than|at least|at most|wenn|falls"
    r"|vor|nach|seit|ab|unter|über|si|avant|après|depuis|au-delà|antes|después|desde|hasta|más de|menos de|se|prima"
    r"|dopo|oltre|sotto|depois|até|als|na|sinds|onder|boven|jeśli|przed|po|od|powyżej|poniżej|om|före|efter|sedan"
    r"|öncesi|sonrası|altı|если|до|после|с|свыше)\b|以前|以后|以降|以上|以下|超"
)
_HELD = {
    "a negation or an exclusion": re.compile(_NEGATION, re.IGNORECASE),
    "a condition or a bound": re.compile(_CONDITION, re.IGNORECASE),
    "a number, a date or a code": re.compile(r"\d"),
    "a parenthesis": re.compile(r"[(（]"),
    "a quotation": re.compile(r"[\"“”„«»「」《》]"),
    "a comma": re.compile(r"[,，、]"),
}
_VALUE = re.compile(r"'''.*?'''|'[^']*'|\d+(?:\.\d+)?", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the splits (default: synthesise anew)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    rows = read_rows(arguments.data, config) if arguments.data else synthesised(config)
    figures = {**text_figures(rows), **search_figures(rows), **program_figures(rows), **reasoning_figures(rows)}
    print(table(("figure", "value"), [(name, f"{value:,}") for name, value in figures.items()]))
    if arguments.json:
        write_json(arguments.json, {"rows": len(rows), **figures})
    return 0


def read_rows(folder: Path, config: Config) -> list[Row]:
    """Return the rows of all splits."""
    return [row for split in SPLITS for row in load_rows(folder / f"{split}.json", config.toolbox).rows]


def synthesised(config: Config) -> list[Row]:
    """Return all rows of a dataset without logged ones."""
    from tool_aware.dataset.assembly import assemble

    return assemble(config, load_content(), []).rows


def text_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return per tool the percentage of content words that were typed, and of texts that have no other."""
    function_words = {word for words in load_content().search_words.values() for word in words.function}
    figures = {}
    for tool, name in TEXT_OF_TOOL.items():
        found = [
            words_found(row, str(row.answer.parameters[name]), function_words)
            for row in rows
            if row.tool == tool and name in row.answer.parameters
        ]
        words = [is_found for text in found for is_found in text]
        figures[f"{tool}.{name}: content words that were typed, %"] = percent(words)
        figures[f"{tool}.{name}: texts of such words alone, %"] = percent([all(text) for text in found])
    return figures


def words_found(row: Row, text: str, function_words: set[str]) -> list[bool]:
    """Return for each content word of a text whether it stands in the row's query or an earlier turn."""
    typed = " ".join([row.query, *(turn.query for turn in row.history)]).lower()
    if row.metadata.get("language") in WITHOUT_SPACES:
        typed = "".join(typed.split())
        return [word in typed for word in text.lower().split()]
    known = set(_WORD.findall(typed))
    return [word in known for word in _WORD.findall(text.lower()) if word not in function_words]


def search_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return how long search texts are, how alike their ends, and what stands in them."""
    searches = [row for row in rows if row.tool in SEARCH_TOOLS and "query" in row.answer.parameters]
    texts = [str(row.answer.parameters["query"]) for row in searches]
    spaced = [
        text for row, text in zip(searches, texts, strict=True) if row.metadata.get("language") not in WITHOUT_SPACES
    ]
    words = [len(text.split()) for text in spaced]
    ends = Counter(" ".join(text.lower().split()[-2:]) for text in spaced)
    vocabulary = Counter(word for text in texts for word in set(_LETTERS.findall(text.lower())))
    entropy = -sum(count / len(spaced) * math.log2(count / len(spaced)) for count in ends.values())
    return {
        "search texts": len(texts),
        "search texts of up to 4 words, %": percent([count <= 4 for count in words]),
        "search texts of 5 to 8 words, %": percent([5 <= count <= 8 for count in words]),
        "search texts of 9 words and more, %": percent([count >= 9 for count in words]),
        "search texts: entropy of the last two words, bits": round(entropy, 2),
        "search texts with one of the 50 most common ends, %": round(
            100 * sum(count for _, count in ends.most_common(50)) / len(spaced), 1
        ),
        **{f"search texts with {name}, %": percent([bool(p.search(t)) for t in texts]) for name, p in _HELD.items()},
        "search texts with a word of at most two texts, %": percent(
            [any(vocabulary[word] <= 2 for word in _LETTERS.findall(text.lower())) for text in texts]
        ),
        "search texts that stand in the query in one piece, %": percent(
            [text.lower() in row.query.lower() for row, text in zip(searches, texts, strict=True)]
        ),
    }


def program_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return how many programs there are, and how they are written."""
    own = [row for row in rows if row.tool == "code_execution"]
    programs = [str(row.answer.parameters["code"]) for row in own]
    return {
        "programs: different ones": len(set(programs)),
        "programs: different skeletons": len({_VALUE.sub("#", program) for program in programs}),
        "programs: templates and dialogues": len({group_of(number, row) for number, row in enumerate(own)}),
        "programs: print `result`, %": percent([bool(re.search(r"print\((round\()?result", p)) for p in programs]),
        'programs: with " or \\ , %': percent(['"' in program or "\\" in program for program in programs]),
    }


def reasoning_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return how much of the reasonings is boilerplate, and whether their evidence stands in the query."""
    counted = boilerplate([row.answer.reasoning or "" for row in rows])
    evidence = [
        stands_in(quote, " ".join([row.query, *(turn.query for turn in row.history)]))
        for row in rows
        for quote in quoted(row.answer.reasoning or "")
    ]
    return {
        "reasonings: the same sentence as another but for a slot, % of 1,000": round(100 * counted.share, 1)
        if counted
        else 0.0,
        "reasonings: different sentences of 1,000": counted.sentences if counted else 0,
        "reasonings: evidence that stands in the query, %": percent(evidence),
    }


def percent(values: Sequence[bool]) -> float:
    """Return the percentage of values that are true."""
    return round(100 * sum(values) / max(len(values), 1), 1)


if __name__ == "__main__":
    run(main)
