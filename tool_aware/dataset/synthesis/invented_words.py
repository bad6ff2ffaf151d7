"""Makes up names, codes, versions, file names, amounts and dates, so that hardly any comes twice.

What a request is about is mostly a name or a number that no list has. A model that has seen a list copies the list; one
that has seen ten thousand different names copies what was typed. Names are syllables that most languages can say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from tool_aware.dataset.synthesis import fillers
from tool_aware.dataset.synthesis.pools import pools

_ONSETS = (
    "b", "br", "c", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "pr", "qu", "r",
    "s", "sk", "st", "t", "th", "tr", "v", "w", "z", "", "bl",
)  # fmt: skip
_VOWELS = ("a", "a", "a", "e", "e", "e", "i", "o", "o", "u", "ai", "ei", "ie")
_CODAS = ("", "", "", "l", "n", "r", "s", "m", "nd", "rt", "ll", "v")
_ENDINGS = ("a", "o", "in", "or", "ex", "ia", "is", "on", "um", "ett", "ard", "ix", "en", "ova", "sen", "berg", "dal",
            "ton", "mar", "wick", "ski", "ez", "ani", "ley")  # fmt: skip
_TOWN_ENDINGS = ("berg", "ford", "stad", "ville", "mouth", "haven", "burg", "dorf", "vik", "ona", "ara", "sk", "moor",
                 "field", "ico", "eda")  # fmt: skip
_FIRST_NAMES = (
    "Ada", "Bogdan", "Carmen", "Dilara", "Emre", "Femke", "Goran", "Halina", "Ilias", "Joana", "Kenji", "Lotte",
    "Mirek", "Nadia", "Oskar", "Paloma", "Rania", "Sven", "Tarek", "Ulla", "Viktor", "Wanda", "Xenia", "Yannis",
    "Zofia", "Ravi", "Mei", "Thandi", "Eamon", "Giulia",
)  # fmt: skip
_TOWNS = (
    "Aarhus", "Basel", "Bergen", "Bilbao", "Brno", "Cork", "Dresden", "Essen", "Faro", "Gdynia", "Ghent",
    "Graz", "Izmir", "Jena", "Kaunas", "Kobe", "Leeds", "Leiden", "Linz", "Malmö", "Metz", "Nantes", "Odense",
    "Padua", "Pilsen", "Porto", "Reims", "Rostock", "Salzburg", "Split", "Tartu", "Trieste", "Turku", "Ulm",
    "Utrecht", "Valencia", "Varna", "Zagreb",
)  # fmt: skip
_FIRMS = (" AG", " GmbH", " Ltd", " & Sons", " SA", " BV", " Group", " Systems", " Foods", " Labs", "", "", "", " & Co")
_EXTENSIONS = ("pdf", "pdf", "xlsx", "docx", "csv", "pptx", "txt", "zip", "md", "eml")
# In one language or another.
_RUDE = (
    "fuk", "kak", "caca", "puta", "kur", "merd", "pis", "cul", "nazi", "cazz", "coj", "hui", "sik", "tit",
    "anal", "fic", "foll", "poll", "fag", "fot",
)  # fmt: skip
_LETTERS = "ABCDEFGHKLMNPRSTVWXZ"
_STEMS = (
    "scan", "final", "draft", "export", "minutes", "offer", "list", "plan", "copy", "notes", "invoice", "img",
    "doc",
)  # fmt: skip


def _name(random_: random.Random, _: str = "en") -> str:
    return _syllables(random_, random_.choice((1, 1, 2)), _ENDINGS)


def _syllables(random_: random.Random, count: int, endings: tuple[str, ...]) -> str:
    while True:
        said = "".join(random_.choice(_ONSETS) + random_.choice(_VOWELS) for _ in range(count))
        said += random_.choice(_CODAS) + random_.choice(endings)
        if not any(part in said for part in _RUDE):
            return said.capitalize()


def _product(random_: random.Random, language: str) -> str:
    name = _name(random_)
    kind = random_.randrange(6)
    if kind == 0:
        return f"{name} {random_.randint(2, 990)}"
    if kind == 1:
        return f"{name} {random_.choice(_LETTERS)}{random_.randint(1, 99)}"
    return name


def _person(random_: random.Random, _: str) -> str:
    kind = random_.randrange(4)
    first, last = random_.choice(_FIRST_NAMES), _name(random_)
    return (first, last, f"{first} {last}", f"{first[0]}. {last}")[kind]


def _company(random_: random.Random, _: str) -> str:
    return _name(random_) + random_.choice(_FIRMS)


def _town(random_: random.Random, _: str) -> str:
    return random_.choice(_TOWNS) if random_.random() < 0.5 else _syllables(random_, 1, _TOWN_ENDINGS)


def _letters(random_: random.Random, low: int, high: int) -> str:
    return "".join(random_.choice(_LETTERS) for _ in range(random_.randint(low, high)))


def _code(random_: random.Random, _: str) -> str:
    letters, number = _letters(random_, 1, 3), random_.randint(2, 9999)
    forms = (f"{letters}-{number}", f"{letters}{number}", f"{number}-{letters[0]}", f"{letters}/{number}",
             f"{letters} {number}", f"{letters}-{number % 90 + 10}-{random_.randint(1, 99):02d}")  # fmt: skip
    return random_.choice(forms)


def _ticket(random_: random.Random, _: str) -> str:
    number = random_.randint(11, 99_999)
    return random_.choice((f"#{number}", f"{_letters(random_, 2, 4)}-{number}", f"INC{number:07d}", str(number)))


def _version(random_: random.Random, _: str) -> str:
    one, two, three = random_.randint(1, 14), random_.randint(0, 12), random_.randint(0, 30)
    return random_.choice((f"v{one}", f"{one}.{two}", f"v{one}.{two}.{three}", f"{one}.{two}.{three}", f"v{one}.{two}"))


def _file(random_: random.Random, _: str) -> str:
    mark = random_.choice("_-")
    parts = [random_.choice(_STEMS), random_.choice((_name(random_).lower(), _letters(random_, 2, 3), ""))]
    parts.append(str(random_.choice((random_.randint(2012, 2026), random_.randint(1, 40), random_.randint(100, 9999)))))
    return f"{mark.join(part for part in parts if part)}.{random_.choice(_EXTENSIONS)}"


def _year(random_: random.Random, _: str) -> str:
    return str(random_.randint(2005, 2027))


def _number(random_: random.Random, _: str) -> str:
    return str(random_.choice((random_.randint(2, 12), random_.randint(2, 60), random_.randint(13, 400))))


def _few(random_: random.Random, _: str) -> str:
    return str(random_.randint(2, 9))


def _amount(random_: random.Random, language: str) -> str:
    return fillers.draw({"amount": [20, 900, 5]} if random_.random() < 0.5 else {"amount": [1000, 90_000, 250]},
                        random_, language).text  # fmt: skip


def _fare(random_: random.Random, _: str) -> str:
    return str(random_.randrange(15, 950, 5))


def _site(random_: random.Random, _: str) -> str:
    return f"{_name(random_).lower()}.{random_.choice(('com', 'org', 'net', 'eu', 'info', 'io'))}"


def _date(random_: random.Random, language: str) -> str:
    return fillers.draw({"date": ["2016-01-01", "2027-06-30"]}, random_, language).text


def _month(random_: random.Random, language: str) -> str:
    return fillers.draw({"month": [2016, 2027]}, random_, language).text


def _month_name(random_: random.Random, language: str) -> str:
    return str(random_.choice(pools()["months"][language])) if language in pools()["months"] else "12"


INVENTED: Mapping[str, Callable[[random.Random, str], str]] = {
    "name": _name, "other_name": _name, "product": _product, "other_product": _product, "person": _person,
    "other_person": _person, "company": _company, "town": _town, "other_town": _town, "code": _code,
    "other_code": _code, "ticket": _ticket, "version": _version, "other_version": _version, "file": _file,
    "year": _year, "number": _number, "few": _few, "amount": _amount, "fare": _fare, "site": _site, "date": _date,
    "month": _month, "month_name": _month_name,
}  # fmt: skip
