"""Personal data: mail addresses, accounts, cards, national numbers, birth dates, and addresses of machines."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from tool_aware.dataset.check_digits import IBAN_LENGTHS, NATIONAL_IDS, passes_iban, passes_luhn
from tool_aware.dataset.redaction_rules import Found, Rule, has_any, matches_of

_DIGIT = re.compile(r"\d")


def _has_digits(least: int) -> Callable[[str, str], bool]:
    return lambda text, _: len(_DIGIT.findall(text)) >= least


# ---- mail ---------------------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![\w.+%'-])(?P<user>(?:[A-Za-z0-9\u00c0-\u024f_.+%'-]){1,64}|[\w.+%'-]{1,64}?)(?:@|%40)"
    r"(?P<host>(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?P<end>[^\W\d_]{2,24}))(?![\w(]|\.\w+\()"
)
_EMAIL_IN_WORDS = re.compile(
    r"(?i)(?<![\w.+-])[\w.+-]{2,64}\s?(?:\[at\]|\(at\)|\{at\})\s?[\w-]{1,60}(?:\s?(?:\[dot\]|\(dot\)|\{dot\}|\.)\s?[a-z]{2,20}){1,3}(?!\w)"
)
_FILES = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "py",
        "js",
        "ts",
        "tsx",
        "jsx",
        "css",
        "html",
        "json",
        "yaml",
        "yml",
        "md",
        "txt",
        "zip",
        "gz",
        "tar",
        "log",
        "sh",
    ]
)
_SERVICES = frozenset(("git", "hg", "svn"))  # git@github.com:org/repo.git


def find_emails(text: str) -> Iterator[Found]:
    """Yield mail addresses; not `package@1.2.3`, `git@host`, `icon@2x.png`."""
    for match in _EMAIL.finditer(text):
        host, user = match["host"], match["user"]
        if re.match(r"v?\d+\.\d", host) or match["end"].lower() in _FILES or user in _SERVICES:
            continue
        start = match.start()
        if not user.isascii() and re.search(r"[\u0370-\U0010ffff](?=[a-z0-9])", user):  # 連絡先はtaro@...
            start += re.search(r"[A-Za-z0-9_.+%'-]*$", user).start()  # type: ignore[union-attr]
        start += len(text[start : match.end()]) - len(text[start : match.end()].lstrip("'.%"))
        yield Found("email", start, match.end())
    for match in _EMAIL_IN_WORDS.finditer(text):
        yield Found("email", match.start(), match.end())


# ---- accounts and cards -------------------------------------------------------------------------------------

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ \u00a0-]?[A-Za-z0-9]){11,30}")
_CARD = re.compile(r"(?<![\d.])\d(?:[ \u00a0-]?\d){12,26}(?![\d])")
_ISSUERS = re.compile(r"4|5[0-8]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[4-9]|6|220")


def find_ibans(text: str) -> Iterator[Found]:
    """Yield IBANs whose check digits are right, at the length of their country."""
    for match in _IBAN.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2].upper(), 0)
        places = [place for place, character in enumerate(match[0]) if character.isalnum()]
        if not length or len(places) < length:
            continue
        end = places[length - 1] + 1
        following = text[match.start() + end : match.start() + end + 1]
        if not following.isalnum() and passes_iban(match[0][:end]):
            yield Found("iban", match.start(), match.start() + end)


def find_cards(text: str) -> Iterator[Found]:
    """Yield numbers of payment cards: an issuer's digits, a right check digit, and groups as they are printed."""
    for match in _CARD.finditer(text):
        groups = [(group.start(), group.end()) for group in re.finditer(r"\d+", match[0])]
        for first in range(len(groups)):
            end = _end_of_card(match[0], groups[first:])
            if end:
                yield Found("card", match.start() + groups[first][0], match.start() + end)
                break


def _end_of_card(text: str, groups: list[tuple[int, int]]) -> int | None:
    sizes: list[int] = []
    digits = ""
    for start, end in groups[:5]:
        sizes.append(end - start)
        digits += text[start:end]
        if sum(sizes) > 19:
            return None
        if sum(sizes) >= 13 and _is_printed(sizes) and _ISSUERS.match(digits) and passes_luhn(digits):
            return end
    return None


def _is_printed(sizes: list[int]) -> bool:
    """Return whether digits are grouped as on a card: not at all, by fours, or 4-6-5 and 4-6-4."""
    is_by_fours = all(size == 4 for size in sizes[:-1]) and 1 <= sizes[-1] <= 4 and len(sizes) > 3
    return len(sizes) == 1 or is_by_fours or tuple(sizes) in ((4, 6, 5), (4, 6, 4))


# ---- national numbers ---------------------------------------------------------------------------------------

_SSN = re.compile(r"(?<![\w.-])(?!000|666)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_NAMED = re.compile(
    r"(?i)(?<![a-z])(?P<name>ssn|social[ _]?security(?:[ _]?(?:number|no\.?))?|(?:his|her|my|their) social|itin|sin|nino|"
    r"ni number|national[ _]?insurance(?:[ _]?number)?|national[ _]?id|id[ _-]?card|identity[ _]?(?:card|number)|personal[ _]?id|"
    r"tax[ _]?(?:id|number|payer)|tin|tfn|steuer\W?id\w*|steuernummer|sozialversicherungsnummer|rentenversicherungsnummer|"
    r"personalausweis\w*|ausweisnummer|passport(?:[ _]?(?:no\.?|number|nr))?|reisepass\w*|nir|num[ée]ro de s[ée]curit[ée] sociale|"
    r"n° s[ée]cu|dni|nie|nif|codice fiscale|bsn|burgerservicenummer|pesel|cpf|rg|aadh?aar|pan|curp|rfc|rut|rrn|personnummer|"
    r"hetu|cpr|f[øo]dselsnummer|c[ée]dula|cnp|kimlik no|身份证号?|身份證|주민등록번호|マイナンバー|инн|снилс|паспорт|driver'?s? licen[cs]e|"
    r"driving licen[cs]e|medicare(?:[ _]?number)?|nhs(?:[ _]?number)?|socialSecurityNumber)"
    r"(?:[\"'`\])]{0,2}\s{0,2}(?:number|no\.?|nr\.?|id)?\s{0,2}(?:is|ist|es|est|é|è|:|=|#|：|は|是|->)?[\s\"'`]{0,3})"
    r"(?<![A-Za-z0-9])(?P<secret>(?=[A-Za-z]{0,4}[ -]?\d)[A-Za-z0-9](?:[ ./-]?[A-Za-z0-9]){5,19})(?![A-Za-z0-9])"
)
_ID_PART = re.compile(r"(?:[ ./-]?(?:[A-Za-z]{0,2}\d[\dA-Za-z]*|[A-Z]{1,3}(?![a-z])))+")


def find_national_ids(text: str) -> Iterator[Found]:
    """Yield national numbers by their check digits, or behind their name."""
    for match in _SSN.finditer(text):
        yield Found("ssn", match.start(), match.end())
    for pattern, is_right in NATIONAL_IDS:
        for match in pattern.finditer(text):
            if is_right(re.sub(r"[ .+-]", "", match[0])):
                yield Found("national_id", match.start(), match.end())


def find_named_ids(text: str) -> Iterator[Found]:
    """Yield what stands behind the name of a national number and has five digits or more."""
    for match in _NAMED.finditer(text):
        value = _ID_PART.match(match["secret"])
        digits = len(_DIGIT.findall(value[0])) if value else 0
        is_code = digits == 4 and value is not None and re.fullmatch(r"[A-Z]{5}\d{4}[A-Z]", value[0])
        if value and (digits >= 5 or is_code) and not re.match(r"(?:19|20)\d\d[-/.]", value[0]):
            kind = "ssn" if re.match(r"(?i)ssn|.*social", match["name"]) else "national_id"
            yield Found(kind, match.start("secret"), match.start("secret") + len(value[0]))


# ---- birth dates --------------------------------------------------------------------------------------------

_MONTH = r"[A-Za-zÀ-ž]{3,10}\.?"
_DAY = (
    rf"(?:\d{{1,2}}[./-]\d{{1,2}}[./-]\d{{2,4}}|\d{{4}}[./-]\d{{1,2}}[./-]\d{{1,2}}|\d{{1,2}}(?:st|nd|rd|th|\.|º)?[ -](?:de |of )?{_MONTH},?"
    rf"[ -](?:de )?\d{{2,4}}|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|\d{{4}}\s?[年년]\s?\d{{1,2}}\s?[月월]\s?\d{{1,2}}\s?[日일]|\d{{8}})"
)
_BIRTH = re.compile(
    r"(?i)(?:(?<![a-z])(?:dob|d\.o\.b\.?|date[ _]of[ _]birth|birth[ _-]?date|birth[ _-]?day|geburtsdatum|geburtstag|geb\.|"
    r"n[ée]e? le|date de naissance|fecha[ _]de[ _]nacimiento|nacid[oa] el|nat[oa] il|data di nascita|data de nascimento|nascid[oa] em|"
    r"geboortedatum|geboren(?: am| op)?|data urodzenia|urodzon[ya]|дата рождения|родил(?:ся|ась)|生年月日|出生日期|생년월일|född|"
    r"syntymäaika|doğum tarihi)|born:|(?<![a-z])born(?! on)|(?<=[a-z,] )born on|birthDate|dateOfBirth)"
    rf"[\"'`]{{0,2}}\s{{0,2}}(?:is|was|ist|war|est|es|è|é|on|:|：|=|は|是|->)?[\s\"'`]{{0,3}}(?:on )?(?:the )?(?P<secret>{_DAY})(?![\w])"
)

_BORN_BEHIND = re.compile(rf"(?i)(?<!\w)(?P<secret>{_DAY}) (?:geboren|zur Welt|nato|née?|urodzon\w)(?!\w)")

# ---- machines -----------------------------------------------------------------------------------------------

_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IP6 = re.compile(r"(?<![\w.:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?:\.\d{1,3}){3})?(?![\w:])")
_SAYS_VERSION = re.compile(r"(?i)(?:version|release|build|driver|firmware|ver\.?|upgrade to|update to|v)\s?$")
_NOBODYS = [  # documentation (RFC 5737), loopback, masks; multicast
    ipaddress.ip_network(text)
    for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "127.0.0.0/29", "0.0.0.0/32", "224.0.0.0/24",
                 "255.0.0.0/8")
]  # fmt: skip
_COMMON = {
    "8.8.8.8",
    "8.8.4.4",
    "1.1.1.1",
    "9.9.9.9",
    "10.0.0.0",
    "10.0.0.1",
    "192.168.0.1",
    "192.168.1.1",
    "172.17.0.1",
}


def find_ips(text: str) -> Iterator[Found]:
    """Yield addresses of machines; not those of documentation, networks with their length, resolvers, versions."""
    for match in _IP4.finditer(text):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        if match[0] in _COMMON or any(address in network for network in _NOBODYS):
            continue
        if _SAYS_VERSION.search(text[max(0, match.start() - 12) : match.start()]):
            continue
        if match[0].endswith(".0") and text.startswith("/", match.end()):
            continue
        yield Found("ip", match.start(), match.end())
    for match in _IP6.finditer(text):
        groups = [group for group in match[0].split(":") if group]
        if len(match[0]) < 6 or len(groups) < 3 or not _DIGIT.search(match[0]):
            continue
        try:
            ipaddress.ip_address(match[0])
        except ValueError:
            continue
        yield Found("ip", match.start(), match.end())


_MAC = re.compile(
    r"(?<![\w:-])(?:[0-9A-Fa-f]{2}(?P<joint>[:-])(?:[0-9A-Fa-f]{2}(?P=joint)){4}[0-9A-Fa-f]{2}|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})(?![\w:-])"
)


_NAMED_MAC = re.compile(r"(?i)(?<![a-z])mac(?:[ _-]?addr(?:ess)?)?\W{1,4}(?P<secret>[0-9a-f]{12})(?![0-9a-z])")


def _mac(text: str) -> str | None:
    return text if len(set(text)) > 3 else None  # 00:00:00:00:00:00, ff:ff:ff:ff:ff:ff


_ID_STEMS = re.compile(
    r"ssn|social|itin|sin|nino|ni number|insurance|national|id|ident|personal|tax|tin|tfn|steuer|sozial|renten|ausweis"
    r"|pass|nir|n° s|dni|nie|nif|codice|bsn|burger|pesel|cpf|rg|aar|pan|curp|rfc|rut|rrn|personn|hetu|cpr|f[øo]dsel|dula"
    r"|cnp|kimlik|身|주민|マイ|инн|снилс|licen|medicare|nhs"
)
_BIRTH_STEMS = re.compile(
    r"dob|d\.o\.b|birth|born|gebur|gebor|geb\.|n[ée]e? le|naiss|nac|nat|nasc|urodz|рожд|родил|生|出|생년|född|synt|doğum"
)


def _may_name_id(text: str, lower: str) -> bool:
    return len(_DIGIT.findall(text)) >= 5 and _ID_STEMS.search(lower) is not None


def _may_name_birth(text: str, lower: str) -> bool:
    return len(_DIGIT.findall(text)) >= 3 and _BIRTH_STEMS.search(lower) is not None


RULES = (
    Rule(has_any("@", "%40", "at]", "at)", "at}"), find_emails),
    Rule(_has_digits(12), find_ibans),
    Rule(_has_digits(13), find_cards),
    Rule(_has_digits(2), matches_of("mac", _MAC, _mac)),
    Rule(has_any("mac"), matches_of("mac", _NAMED_MAC, _mac)),
    Rule(_has_digits(4), find_ips),
    Rule(_may_name_birth, matches_of("birth_date", _BIRTH)),
    Rule(_may_name_birth, matches_of("birth_date", _BORN_BEHIND)),
    Rule(_may_name_id, find_named_ids),
    Rule(_has_digits(5), find_national_ids),
)
