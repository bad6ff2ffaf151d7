"""What programs on texts, tables and chance have to print; see expected_values.py."""

# ruff: noqa: E741  slots of the content are named so
from __future__ import annotations

import ast
import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from urllib.parse import unquote

from tests.unit.dataset.synthesis.other_ways import (
    ALPHABET,
    Expected,
    about,
    by_letters,
    cells,
    exact,
    inserted,
    mean,
    middle,
    near,
    parted,
    printed_list,
    sample,
    shared_birthday,
    two_dice,
)


def _once(values: list) -> list:
    return [value for at, value in enumerate(values) if value not in values[:at]]


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text.lower()))


_FITTING = {  # what a pattern fits in the texts of the content
    r"\d{4}-\d{2}": ("2024-07", "2025-11", "2023-02", "2026-01"),
    r"[A-Z]{2}\d+": ("AB123", "RX20", "QT9", "KL55"),
    r"\w+@\w+\.\w+": ("@",),
    "colou?r": ("colour", "color"),
}


def _longest_word(text: str) -> str:
    """Return the first of the longest words, marks left out but for an apostrophe within a word."""
    words = "".join(c if c.isalnum() or c == "'" else " " for c in text).split()
    return next(word for word in words if len(word) == max(map(len, words)))


def _capitalised(text: str) -> str:
    """Return a text whose words, which blanks part, begin with a capital letter; all others are small."""
    return "".join(c.upper() if text[at - 1 : at] in ("", " ") else c.lower() for at, c in enumerate(text))


def _median_sum_top(table: str) -> Callable[[str], bool]:
    rows = [(name, exact(value)) for name, value in (pair.split(",") for pair in table.split())]
    values = [value for _, value in rows]
    wanted = [float(middle(values)), float(sum(values))]

    def is_right(printed: str) -> bool:
        *numbers, name = printed.split()
        return list(map(float, numbers)) == wanted and name == max(rows, key=lambda row: row[1])[0]

    return is_right


def _grouped(table: list[tuple], combine: Callable[[list], object]) -> str:
    rows = cells(table)
    return str({key: combine([row for row in rows if row[0] == key]) for key in dict.fromkeys(row[0] for row in rows)})


def _is_ring(printed: str, names: list) -> bool:
    pairs = [line.split(" -> ") for line in printed.splitlines()]
    return sorted(a for a, _ in pairs) == sorted(b for _, b in pairs) == sorted(names) and all(a != b for a, b in pairs)


def _amounts(printed: str, table: list[tuple]) -> bool:
    wanted: dict[str, Fraction] = {}
    for category, amount in cells(table):
        wanted[category] = wanted.get(category, Fraction(0)) + exact(amount)
    return {key: round(float(value), 2) for key, value in wanted.items()} == ast.literal_eval(printed)


TEXTS: dict[str, Callable[..., Expected]] = {
    "word_frequency": lambda t: lambda printed: dict(ast.literal_eval(printed)) == dict(Counter(t.split())),
    "common_word_text": lambda t: max(t.split(), key=t.split().count),
    "numbers_in_text": printed_list,
    "lines_unique": lambda table: "\n".join(_once(table.split("\n"))),
    "lines_number": lambda table: "\n".join(f"{at + 1} {line}" for at, line in enumerate(table.split("\n"))),
    "lines_containing": lambda table: len([line for line in table.split("\n") if line.endswith("open")]),
    "sentence_count": lambda t: len(t.split(".")) - 1,
    "average_word": lambda t: Fraction(len(t.replace(" ", "")), t.count(" ") + 1),
    "letters_only": lambda t: len([c for c in t if c.lower() != c.upper()]),
    "first_letters_upper": lambda words: printed_list(word[:1] for word in words),
    "lower_text": lambda t: "".join(c.lower() for c in t),
    "word_count": lambda t: len(list(filter(None, t.split(" ")))),
    "text_characters": lambda t: sum(1 for _ in t),
    "letter_in_text": lambda t, l: sum(letter in (l, l.upper()) for letter in t),
    "longest_word": _longest_word,
    "most_common_word": lambda words: next(
        w for w in words if words.count(w) > max(words.count(x) for x in words if x != w)
    ),
    "word_occurrences": lambda t, w: sum(word.strip(",") == w for word in t.split()),
    "regex": lambda p, t: str(any(part in t for part in _FITTING[p])),
    "reverse_words": lambda t: " ".join(t.split()[::-1]),
    "reverse_text": lambda t: "".join(reversed(t)),
    "to_upper": lambda t: "".join(letter.upper() for letter in t),
    "to_title": _capitalised,
    "upper": lambda t: f"{t.upper()}\n{_capitalised(t)}",
    "title_case": lambda t, f: _capitalised(t) if "capwords" in f else t.upper() if "upper" in f else t.lower(),
    "dedupe_list": lambda words: printed_list(_once(words)),
    "dedupe_numbers": lambda numbers: printed_list(_once(numbers)),
    "count_unique": lambda numbers: len(_once(numbers)),
    "sort_words": lambda words: printed_list(sorted(sorted(words), key=lambda word: word.lower())),
    "count_items": lambda words: sum(1 for _ in words),
    "join_semicolon": lambda words: str(words)[2:-2].replace("', '", ";"),
    "quote_items": "\n".join,
    "word_lengths": lambda words: printed_list(sum(1 for _ in word) for word in words),
    "longest_of": lambda words: sorted(words, key=lambda word: -len(word))[0],
    "sort_length": lambda words: printed_list(sorted(words, key=lambda word: sum(1 for _ in word))),
    "replace_word": lambda t, a, b: f" {t} ".replace(" ", "  ").replace(f" {a} ", f" {b} ").replace("  ", " ").strip(),
    "remove_spaces": lambda t: "".join(t.split(" ")),
    "squeeze_spaces": lambda t: " ".join(filter(None, t.split(" "))),
    "slug": lambda t: "-".join("".join(c if c in f"{ALPHABET}0123456789" else " " for c in t.lower()).split()),
    "strip_punctuation": lambda t: "".join(c for c in t if c not in ",.;:!?"),
    "extract_emails": lambda t: printed_list(word.strip(",") for word in t.split() if "@" in word),
    "sum_in_text": lambda a, b, c, **_: sum((a, b, c)),
    "sort_by_number": lambda words: printed_list(sorted(words, key=lambda word: int(word[5:]))),
    "every_other": lambda words: printed_list(word for at, word in enumerate(words) if at % 2 == 0),
    "starts_with": lambda words, l: printed_list(word for word in words if word[0] == l),
    "is_anagram": lambda p: str(Counter(p[0]) == Counter(p[1])),
    "vowel_count": lambda t: sum(map(t.lower().count, "aeiou")),
    "letters_of": lambda w: sum(1 for _ in w),
    "palindrome": lambda t: str(_letters(t) == "".join(reversed(_letters(t)))),
    "unique": lambda words: printed_list(sorted(_once([word.lower() for word in words]))),
    "frequency": lambda words: (
        lambda printed: dict(ast.literal_eval(printed)) == dict(Counter(" ".join(words).split()))
    ),
    "decoy_letters": lambda w: lambda printed: eval(printed, {"Counter": dict}) == {c: w.count(c) for c in w},
    "case": lambda t: "".join(f"_{c}".lower() if c in ALPHABET.upper() else c for c in t),
    "camel": lambda t: t[0] + t.title().replace("_", "")[1:],
    "acronym": lambda t: "".join(word.upper()[:1] for word in t.split(" ")),
    "replace": lambda t: "-".join(t.split("/")),
    "hash": lambda t, a: getattr(hashlib, a.replace("-", ""))(t.encode()).hexdigest(),
    "base64": lambda t: lambda printed: base64.b64decode(printed).decode() == t,
    "url_encode": lambda t: lambda printed: unquote(printed) == t and " " not in printed,
    "json_keys": lambda t: lambda printed: json.loads(printed) == json.loads(t) and "\n  " in printed,
    "csv_to_json": lambda t: (
        lambda printed: [list(row.values()) for row in json.loads(printed)] == cells(t.replace(";", "\n"))
    ),
    "csv_median": _median_sum_top,
    "extract_numbers": lambda t: printed_list(map(int, "".join(c if c.isdigit() else " " for c in t).split())),
    "anagrams": lambda t: lambda printed: len(ast.literal_eval(printed)) == by_letters(t),
    "caesar": lambda t, n: t.translate(str.maketrans(ALPHABET, ALPHABET[n % 26 :] + ALPHABET[: n % 26])),
    "common": lambda a, b: f"{sorted({x for x in a if x in b})} {sorted({x for x in a + b if (x in a) != (x in b)})}",
    "compare_lists": lambda words, w: (
        f"{[x for x in words if x in w]} {[x for x in words if x not in w]} {[x for x in w if x not in words]}"
    ),
    "nth_words": lambda t, k: " ".join(word for at, word in enumerate(t.split(), 1) if at % k == 0),
    "number_list": lambda words: "\n".join(f"{at + 1} {word}" for at, word in enumerate(words)),
    "guest_list": lambda words: "\n".join(f"{at + 1} {word}" for at, word in enumerate(inserted(words))),
    "pairs": lambda words: printed_list((a, b) for a, b in product(words, words) if words.index(a) < words.index(b)),
    "strip_vowels": lambda t: t.translate(str.maketrans("", "", "aeiouAEIOU")),
    "initials_sort": lambda words: printed_list(f"{w.split(', ')[1]} {w.split(', ')[0]}" for w in words),
    "dedupe_mails": lambda words: printed_list(
        w for i, w in enumerate(words) if w.lower() not in map(str.lower, words[:i])
    ),
}


TABLES: dict[str, Callable[..., Expected]] = {
    "table_third": lambda table: sum(exact(row[2]) for row in cells(table)),
    "table_group_amount": lambda table: lambda printed: _amounts(printed, table),
    "table_count_value": lambda table, v: len([row for row in cells(table) if row[1] == v]),
    "table_names_value": lambda table, v: printed_list(name for name, status in cells(table) if status == v),
    "table_difference": lambda table: (
        sum(exact(row[1]) for row in cells(table)) - sum(exact(row[2]) for row in cells(table))
    ),
    "table_sort_desc": lambda table: "\n".join(
        f"{name} {points}" for name, points in sorted(cells(table), key=lambda row: -int(row[1]))
    ),
    "table_sum_amount": lambda table: sum(exact(row[1]) for row in cells(table)),
    "table_average": lambda table: mean([row[1] for row in cells(table)]),
    "table_top": lambda table: sorted(cells(table), key=lambda row: -exact(row[1]))[0][0],
    "table_lowest": lambda table: sorted(cells(table), key=lambda row: exact(row[1]))[0][0],
    "table_count_above": lambda table, k: len([row for row in cells(table) if exact(row[1]) > k]),
    "table_filter": lambda table, k: printed_list(name for name, points in cells(table) if exact(points) > k),
    "table_sort": lambda table: "\n".join(
        f"{name} {old}" for name, old in sorted(cells(table), key=lambda row: int(row[1]))
    ),
    "table_revenue": lambda table: sum(exact(count) * exact(price) for _, count, price in cells(table)),
    "table_group": lambda table: _grouped(table, lambda rows: int(sum(exact(row[1]) for row in rows))),
    "table_group_count": lambda table: _grouped(table, len),
    "table_rows": len,
    "table_max": lambda table: sorted(int(row[1]) for row in cells(table))[-1],
    "table_median": lambda table: middle([row[1] for row in cells(table)]),
    "table_column": lambda table: printed_list(name for name, _ in cells(table)),
    "lines_sum": lambda table: sum(exact(line[line.rindex(" ") + 1 :]) for line in table.split("\n")),
    "lines_sort": lambda table: "\n".join(inserted(table.split("\n"))),
    "lines_count": lambda table: table.count("\n") + 1,
    "log_errors": lambda table: table.count(" ERROR "),
}


SIMULATIONS: dict[str, Callable[..., Expected]] = {
    "dice_sum_share": lambda n, s: near(two_dice(s), n),
    "coin_heads": lambda n: about(n / 2, 5 * math.sqrt(n) / 2),
    "dice_mean": lambda n: about(3.5, 5 * 1.71 / math.sqrt(n)),
    "monty_hall": lambda n: near(2 / 3, n),
    "random_walk": lambda n: lambda printed: abs(int(printed)) <= 5 * math.sqrt(n) and (int(printed) - n) % 2 == 0,
    "birthday": lambda n: near(shared_birthday(n), 20_000),
    "two_same_birthday": lambda n, r: near(shared_birthday(n), r),
    "six_wait": lambda n: about(6, 5 * 5.48 / math.sqrt(n)),
    "pi": lambda n: about(math.pi, 5 * 1.65 / math.sqrt(n)),
    "coin_streak": lambda n: about(math.log2(n), 9),
    "pick_one": lambda words: lambda printed: printed in words,
    "roll_dice": lambda n: lambda printed: len(d := ast.literal_eval(printed)) == n and {*d} <= {*range(1, 7)},
    "shuffle_list": lambda words: sample(words, len(words)),
    "winners": sample,
    "shuffle": parted,
    "teams": lambda words: parted(words, 2),
    "secret_santa": lambda words: lambda printed: _is_ring(printed, words),
    "lottery": lambda n, k: sample(list(range(1, n + 1)), k),
    "random_number": lambda a, b: lambda printed: a <= int(printed) <= b,
    "password": lambda n: lambda printed: len(printed) == n and printed.isalnum(),
    "time_it": lambda n: lambda printed: 0 < float(printed) < 60,
}
