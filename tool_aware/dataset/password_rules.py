"""Passwords, keys and cookies that stand behind their name: assigned, said, given to a command, or in a URL."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from tool_aware.dataset.redaction_rules import Found, Rule, has_any, is_random, is_uuid

# ---- names --------------------------------------------------------------------------------------------------

_PASSWORD_WORDS = (
    "password", "passwd", "passwort", "passwrd", "passphrase", "passcode", "kennwort", "mot de passe", "motdepasse",
    "contraseña", "contrasena", "senha", "wachtwoord", "hasło", "haslo", "lösenord", "adgangskode", "salasana", "şifre",
    "parola", "heslo", "jelszó", "пароль", "密码", "密碼", "口令", "パスワード", "비밀번호", "pwd", "passw",
)  # fmt: skip
_SHORT_WORDS = ("pass", "pw", "psw", "pin")  # of a password as well, but only as a word of their own: not in compass
_KEY_WORDS = (
    "key", "token", "secret", "credential", "auth", "sess", "sid", "sig", "appid", "app_id", "cookie", "jwt", "pat",
    "bearer", "cvv", "cvc", "webhook", "csrf", "xsrf", "otp", "mnemonic", "seed phrase", "recovery phrase",
)  # fmt: skip
_NOT_SECRET = re.compile(
    r"(?i)[_-]?(?:file|path|url|uri|endpoint|id|name|names|type|types|field|fields|policy|length|len|size|min|max|count"
    r"|counts|limit|expires?|expiry|expiration|ttl|algorithm|alg|hash|hashes|hint|reset|required|rotation|izer|ized"
    r"|board|word|words|stone|note|frame|press|up|down|code|pair|store|ring|server|method|provider|scheme|mode|format"
    r"|status|state|valid|version|enabled|manager|s?_per_\w+|or|ority|ored|ors|entication|orization_?url|entic\w*)s?"
)
_PLACES = re.compile(r"(?i)(?:foreign|primary|public|sort|partition|cache|hot|natural|index|idx|pub|map|dict)[_ -]?$")

_ALL_WORDS = "|".join(map(re.escape, sorted((*_PASSWORD_WORDS, *_KEY_WORDS), key=len, reverse=True)))
_SHORT = "|".join(_SHORT_WORDS)
_NAME = rf"(?P<word>{_ALL_WORDS}|(?<![a-z])(?:{_SHORT}))(?P<rest>[\w-]{{0,24}})"
_CLOSE = r"(?:\\{0,3}[\"'`]|\\?[\"']?[\])])?"
_QUOTED = r"(?P<quote>\\{0,3}[\"'`])(?P<quoted>(?:(?!(?P=quote))[^\n]){3,300})(?P=quote)"
_BARE = r"(?P<bare>[^\s\"'`<>]{3,160})"
_ASSIGNED = re.compile(
    rf"(?i){_NAME}{_CLOSE}(?:\s{{0,3}}(?P<sep>:=|=>|={{1,3}}|::?|：|->|>|,)\s{{0,3}}|\s{{1,2}}value\s?=\s?"
    rf"|(?P<space>\s{{1,2}}))(?:[a-z@]?{_QUOTED}|{_BARE})"
)
_ASSIGNED_SCHEME = re.compile(r"(?i)(?:bearer|basic|token|digest|apikey|bot)$")
_EMPTY_VALUE = re.compile(
    r"(?i)(?:none|null|nil|true|false|undefined|empty|optional|required|string|str|text|varchar|char|bytes|int|integer"
    r"|any|object|self|this|changed?|reset|redacted|hidden|masked|secret|token|password|passwd|pass|pwd|bearer|basic"
    r"|wrong|incorrect|invalid|expired|missing|forgotten|vergessen|username|user|email|login|yes|no|on|off|not"
    r"|your\w*|my\w*key|my\w*token|example\w*|placeholder|\*+|x+|\.+|-+|_+|#+|\?+)"
)
_REFERENCE = re.compile(
    r"\\?[$<{%&@]\\?[\w{<(%$.-]|\{\{|os\.|process\.|env[.(\[]|getenv|System\.|config[.\[]|settings[.\[]|secrets?[.\[]|vault:"
    r"|var\.|local\.|data\.|args\.|self\.|this\.|request\.|req\.|[A-Za-z_][\w.]*\(|[a-z_]\w*\[|/|~/|\./|[A-Za-z]:\\"
)
_SENTENCE_WORDS = re.compile(
    r"(?i)\b(?:must|is|are|the|field|required|enter|your|should|invalid|incorrect|at least|please|not|of|for|and|or|a)\b"
)


def find_assigned(text: str) -> Iterator[Found]:
    """Yield what is assigned to a name: `DB_PASSWORD=...`, `"apiKey": "..."`, `<password>...`, `token: ...`."""
    at = 0
    while match := _ASSIGNED.search(text, at):
        at = match.end("rest")  # the value may be a name of its own
        is_password = _is_password_name(match)
        if is_password is None:
            continue
        group = "quoted" if match["quoted"] is not None else "bare"
        start, value = match.start(group), match[group]
        if group == "bare":
            value = _bare_value(value)
        if _ASSIGNED_SCHEME.fullmatch(value):
            continue  # find_schemes looks behind it
        has_equals = (match["sep"] or "").startswith(("=", ":", "：", "-"))
        if is_password and (has_equals or match["sep"] == ">" or (match["sep"] is None and match["space"] is None)):
            is_secret = _is_password(value, is_quoted=group == "quoted", is_equals=match["sep"] == "=")
            if is_secret and group == "bare" and match["sep"] != "=" and value.isalpha():
                is_secret = _ends_clause(text, start + len(value))
        else:
            is_secret = _is_key(value, match)
        if is_secret:
            kind = "password" if is_password else "secret"
            yield Found(kind, start, start + len(value))
            at = start + len(value)


def _is_password_name(match: re.Match[str]) -> bool | None:
    """Return whether a name is that of a password, or else of a key; None for the name of something public."""
    rest, word = match["rest"], match["word"].lower()
    if rest and _NOT_SECRET.fullmatch(rest) and not (word == "sess" and rest.lower().endswith("id")):
        return None
    before = match.string[max(0, match.start() - 12) : match.start()]
    if word == "key" and _PLACES.search(before):
        return None
    if word in _SHORT_WORDS:
        is_word = not rest or rest[0] in "_-" or rest[0].isupper()
        return True if is_word else None
    if word in ("pat", "sig", "sid", "otp", "auth", "sess", "cvv", "cvc") and rest[:1].isalpha() and rest[0].islower():
        return None if word not in ("sess", "auth") or not rest.lower().startswith(("ion", "oriz")) else False
    return word in _PASSWORD_WORDS


def _bare_value(value: str) -> str:
    """Return a value without quotes up to where it ends: at `;`, `&name=`, a bracket that nothing opened, a full stop."""
    cut = re.search(r"[,;&](?=$|[\w.-]{1,40}=|[\"'])|\\[nrt\"']|[;,]$", value)
    value = value[: cut.start()] if cut else value
    for opening, closing in ("()", "[]", "{}"):
        while value.endswith(closing) and opening not in value:
            value = value[:-1]
    return value.rstrip(".,:;")


def _is_password(value: str, *, is_quoted: bool, is_equals: bool) -> bool:
    if len(value) < 3 or _EMPTY_VALUE.fullmatch(value) or _REFERENCE.match(value):
        return False
    if " " in value:
        return is_quoted and not _SENTENCE_WORDS.search(value)
    if is_quoted:
        return True
    if "(" in value or "[" in value or re.fullmatch(r"[A-Za-z_]+(?:[._][A-Za-z_]+)+", value):
        return bool(re.search(r"\d", value)) and "(" not in value and "[" not in value
    if value.isalpha() and value.isascii():
        return len(value) >= 6 or (is_equals and len(value) >= 4)
    return len(value) >= 4


def _ends_clause(text: str, end: int) -> bool:
    """Return whether nothing but the end of a line, or of a list's item, follows."""
    return re.match(r"\s*(?:$|[\n,;}\]])", text[end : end + 20]) is not None


def _is_key(value: str, match: re.Match[str]) -> bool:
    if _REFERENCE.match(value) and not value.startswith("/"):
        return False
    word = match["word"].lower()
    digits = sum(map(str.isdigit, value))
    if word in ("cvv", "cvc", "otp"):
        return value.isdigit() and len(value) <= 8
    if word.endswith("phrase") or word == "mnemonic":
        return len(re.findall(r"[a-z]{3,8}", value)) >= 12
    if is_uuid(value):
        return word in ("token", "secret", "auth", "sess", "jwt", "password")
    if "/" in value and value.count("/") > len(value) // 12 and digits < 3:
        return False
    if word in ("secret", "token", "credential") and not match["space"] and _is_mixture(value):
        return True
    return is_random(value, 16 if match["space"] or match["sep"] == "," else 12)


def _is_mixture(value: str) -> bool:
    """Return whether a value has letters, digits and such symbols as passwords have and code has not."""
    is_mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and re.search(r"[!#$%&@^~?*]", value)
    return bool(is_mixed) and 6 <= len(value) <= 64 and not re.search(r"[\[(]", value)


# ---- said ---------------------------------------------------------------------------------------------------

_VERBS = (
    r"is|was|are|=|:|：|ist|war|lautet|est|était|es|era|è|é|to|on|är|er|jest|на|это|является|是|为|為|は|이|가|은|는|->"
)
_SAID_NAME = re.compile(
    rf"(?i)(?:{'|'.join(map(re.escape, _PASSWORD_WORDS))}|(?<![a-z])(?:pin|pass|pw|api[ _-]?key|access[ _-]?key"
    rf"|secret[ _-]?key|secret|token))"
)
_VALUE = r"\s{0,3}[\"'`“”„«「]?(?P<secret>[^\s\"'`“”«»「」<>]{4,64})"
_DIRECTLY = re.compile(rf"\s{_VALUE}")
_WITH_VERB = re.compile(
    rf"(?i)(?P<between>[^\n=:.?!]{{0,30}}?)(?:(?<=[^\x00-\x7f])|(?<![a-z]))(?:{_VERBS})(?:\s{{1,3}}|(?<=[^\x00-\x7f])){_VALUE}"
)
_SYMBOL = re.compile(r"[!#$%&*+^~@?=]")
_OWN = re.compile(r"(?i)\b(?:my|our|mein|mon|mi|mia|minha|mijn|moje)\W{0,3}$")
_ALGORITHM = re.compile(r"(?i)(?:sha|md|base|utf|aes|hs|rs|es|ed|bcrypt|argon|oauth|saml|http|pkcs|v)-?\d+\w*")
_BESIDES = re.compile(r"(?i)\b(?:length|policy|field|reset|hash|rotation|limit|format|count|type|manager)\b")
_ADJECTIVE = re.compile(r"(?i)\w+(?:ed|ing|ive|ory|able|ible|ful|less|ect|ent|ant|id|al|ong|eak|ase|ain|ext|ary|ly)")


def find_said(text: str) -> Iterator[Found]:
    """Yield passwords and keys in sentences: `my password is ...`, `Passwort lautet ...`, `api key ...`."""
    at = 0
    while name := _SAID_NAME.search(text, at):
        at = name.end()
        for pattern, is_right in ((_WITH_VERB, _is_said), (_DIRECTLY, _is_said_directly)):
            match = pattern.match(text, name.end())
            value = _said_value(match["secret"]) if match else ""
            if match and value and is_right(value, name, match):
                yield Found("password", match.start("secret"), match.start("secret") + len(value))
                at = match.start("secret") + len(value)
                break


def _said_value(word: str) -> str:
    """Return a word without the sentence's marks behind it; nothing for a call, a reference, a URL."""
    value = word.rstrip(".,:;?)]}")
    is_other = "(" in value or _REFERENCE.match(value) or _EMPTY_VALUE.fullmatch(value)
    return "" if is_other or re.search(r"[=\[]$|://", value) else value


def _is_said(value: str, name: re.Match[str], match: re.Match[str]) -> bool:
    """Return whether what stands behind `is` is a password, and not what is said about one."""
    word, between = name[0].lower(), match["between"].strip()
    has_digit, has_letter = any(map(str.isdigit, value)), any(map(str.isalpha, value))
    if _BESIDES.search(between):
        return False
    if word == "pin":
        return has_digit and 4 <= len(value) <= 16
    if has_letter and (has_digit or _SYMBOL.search(value[:-1])) and len(value) >= 5:
        return not re.fullmatch(r"\d+[-–]?[a-z]+|[A-Z]{1,4}-?\d{1,4}|[a-z]+-\d|v\d.*", value)
    if has_digit and not has_letter and len(value) >= 6:
        return word in _PASSWORD_WORDS
    is_own = _OWN.search(name.string[max(0, name.start() - 8) : name.start()])
    is_word = value.isalpha() and value.isascii() and len(value) >= 6 and not _ADJECTIVE.fullmatch(value)
    ends = re.match(r"\s*(?:$|\n)", match.string[match.end("secret") : match.end("secret") + 4])
    return bool(is_own and is_word and ends and not between)


def _is_said_directly(value: str, name: re.Match[str], _: re.Match[str]) -> bool:
    """Return whether what follows the name at once is a password: a mixture, and no code."""
    if name[0].lower() == "passcode" and re.fullmatch(r"\d{4,8}", value):
        return True
    if name[0].lower() == "pin" or len(value) < 6 or not any(map(str.isalpha, value)):
        return False
    if _SYMBOL.search(value[:-1]):
        return not re.search(r"[=\[/]", value)
    has_digit = any(map(str.isdigit, value))
    is_enough = len(value) >= 8 or not value.isalnum() or name[0].lower() in _PASSWORD_WORDS
    return has_digit and is_enough and not _ALGORITHM.fullmatch(value) and not re.search(r"[=\[/.-]", value)


# ---- commands, URLs, headers --------------------------------------------------------------------------------

_COMMAND = re.compile(
    r"(?:(?<=\s)(?P<flag>-p|-a|-P|-w|-bB?|--?pass(?:word)?|--token|--api-key|-t)(?P<gap>[ =]?)|(?<=\s)(?:-u|--user)[ =]?[\"']?"
    r"(?P<user>[^\s:\"'$]{1,64}):)(?:[\"'](?P<quoted>[^\"'\n]{3,128})[\"']|(?P<bare>[^\s\"'|;]{3,128}))"
)
_TAKES = (  # option, programs that take a password with it
    ("-p", re.compile(r"\b(?:mysql\w*|mariadb\w*|sshpass|mongo\w*|docker|podman|helm|twine|7z|7za|rar|redis\w*|oc)\b")),
    ("-a", re.compile(r"\b(?:redis-cli|valkey-cli)\b")),
    ("-P", re.compile(r"\b(?:unzip|zip|sqlcmd|bcp|isql)\b")),
    ("-w", re.compile(r"\bldap\w+\b")),
    ("-t", re.compile(r"\b(?:glab|snyk)\b")),
)
_HTPASSWD = re.compile(
    r"\bhtpasswd\s{1,3}-\w{0,3}b\w{0,3}\s{1,3}\S{1,80}\s{1,3}\S{1,80}\s{1,3}[\"']?(?P<secret>[^\s\"']{3,80})"
)
_LOGIN = re.compile(
    r"\b(?:wandb login|wandb\.login\(|hf auth login|huggingface-cli login)[^\n]{0,40}?(?P<secret>[0-9a-f]{40})"
)
_IDENTIFIED = re.compile(r"(?i)identified by\s{1,3}[\"'](?P<secret>[^\"'\n]{3,128})[\"']")
_HASH = re.compile(
    r"(?<![\w$])(?P<secret>\$(?:2[abxy]|argon2\w{1,2}|scrypt|pbkdf2[\w-]{0,12}|[156y])\$[\w./$=,+-]{20,300})"
)
_PHRASE = re.compile(
    r"(?i)(?:seed phrase|recovery phrase|mnemonic)(?: is)?\W{1,4}(?P<secret>(?:[a-z]{3,8} ){11,23}[a-z]{3,8})"
)
_WANDB = re.compile(r"(?i)wandb\W{1,4}(?P<secret>[0-9a-f]{40})(?![0-9a-f])")
_OTHERS = (("password", _IDENTIFIED), ("password_hash", _HASH), ("secret", _PHRASE), ("secret", _WANDB))
_BEFORE = 160  # characters in front of an option in which its program stands


def find_options(text: str) -> Iterator[Found]:
    """Yield passwords given to programs: `mysql -p...`, `sshpass -p ...`, `curl -u user:...`, `--password ...`."""
    for match in _COMMAND.finditer(text):
        group = "quoted" if match["quoted"] else "bare"
        value, before = match[group], text[max(0, match.start() - _BEFORE) : match.start()]
        if (_REFERENCE.match(value) and not value.startswith("/")) or value.startswith("-"):
            continue
        if (flag := match["flag"]) and not flag.startswith("--") and flag[1:3] != "pa":
            programs = dict(_TAKES).get(flag)
            if not programs or not programs.search(before) or (flag == "-p" and re.fullmatch(r"[\d:.-]+", value)):
                continue
            if "mysql" in before and match["gap"] == " ":
                continue  # there the password follows at once; what stands apart is the database
        elif flag and (match["gap"] == "" or _EMPTY_VALUE.fullmatch(value)):
            continue
        if match["user"] and not re.search(r"\b(?:curl|http|wget|xh)\b", before):
            continue
        yield Found("password", match.start(group), match.end(group))
    for pattern in (_HTPASSWD, _LOGIN):
        for match in pattern.finditer(text):
            yield Found("password" if pattern is _HTPASSWD else "secret", match.start("secret"), match.end("secret"))


def find_others(text: str) -> Iterator[Found]:
    """Yield passwords in SQL, salted hashes of passwords, phrases that open a wallet, and keys of W&B."""
    for kind, pattern in _OTHERS:
        for match in pattern.finditer(text):
            yield Found(kind, match.start("secret"), match.end("secret"))


_URL_LOGIN = re.compile(r"://(?P<user>[^\s/:@\"'<>?#]{0,128}):(?P<secret>[^\s/\"'<>]{1,256})@(?=[\w\[.$-])")
_URL_TOKEN = re.compile(r"://(?P<secret>[A-Za-z0-9_-]{20,128})(?::x-oauth-basic)?@")


def find_url_logins(text: str) -> Iterator[Found]:
    """Yield the password of `scheme://user:password@host`, and the token of `https://token@host`."""
    for match in _URL_LOGIN.finditer(text):
        if not re.match(r"\$|\{|%\(|\*+$", match["secret"]):
            yield Found("password", match.start("secret"), match.end("secret"))
    for match in _URL_TOKEN.finditer(text):
        if is_random(match["secret"]):
            yield Found("secret", match.start("secret"), match.end("secret"))


_SCHEME = re.compile(
    r"(?i)(?<![a-z])(?P<scheme>bearer|basic|digest|token|apikey|bot)\s{1,4}(?P<secret>[\w.~+/-]{8,4000}={0,2})"
)


def find_schemes(text: str) -> Iterator[Found]:
    """Yield what follows `Bearer` and `Basic`, if it looks like a token or is a login in base64."""
    for match in _SCHEME.finditer(text):
        if match["scheme"].lower() == "basic" and _is_login(match["secret"]):
            yield Found("basic_auth", match.start("secret"), match.end("secret"))
        elif is_random(match["secret"]) and not is_uuid(match["secret"]):
            yield Found("bearer_token", match.start("secret"), match.end("secret"))


def _is_login(text: str) -> bool:
    """Return whether base64 holds `user:password`."""
    try:
        return b":" in base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


_BASE64_LOGIN = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{12,400}={0,2}(?![A-Za-z0-9+/=])")
_COOKIES = re.compile(r"(?i)cookie[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?P<all>[^\n\"']{1,4000})")
_COOKIE = re.compile(r"(?P<name>[^\s=;,]{1,80})=(?P<value>[^\s;,\"']{6,4000})")
_OPTION_COOKIE = re.compile(r"(?<=\s)(?:-b|--cookie)[ =][\"']?(?P<all>[^\n\"']{1,4000})")
_ATTRIBUTES = {"path", "expires", "max-age", "domain", "samesite", "secure", "httponly", "version", "priority"}


def find_cookies(text: str) -> Iterator[Found]:
    """Yield values of a `Cookie` or `Set-Cookie` header that look drawn, and logins in base64 behind `auth`."""
    for pattern in (_COOKIES, _OPTION_COOKIE):
        for header in pattern.finditer(text):
            for match in _COOKIE.finditer(text, header.start("all"), header.end("all")):
                is_drawn = is_random(match["value"], 10) or is_uuid(match["value"])
                if match["name"].lower() not in _ATTRIBUTES and is_drawn:
                    yield Found("cookie", match.start("value"), match.end("value"))


def find_logins(text: str) -> Iterator[Found]:
    """Yield `user:password` in base64 behind a name with `auth`."""
    for match in _BASE64_LOGIN.finditer(text):
        if "auth" in text[max(0, match.start() - 24) : match.start()].lower() and _is_login(match[0]):
            yield Found("basic_auth", match.start(), match.end())


def find_named(text: str) -> Iterator[Found]:
    """Yield what is assigned to a name, then what is said to be one."""
    yield from find_assigned(text)
    yield from find_said(text)


_NAMES = has_any(*_PASSWORD_WORDS, *_KEY_WORDS, *_SHORT_WORDS)

RULES = (
    Rule(has_any("cookie", " -b "), find_cookies),
    Rule(has_any("://"), find_url_logins),
    Rule(has_any("bearer", "basic", "digest", "token", "apikey", "bot "), find_schemes),
    Rule(has_any("auth"), find_logins),
    Rule(has_any(" -", "htpasswd", "wandb", "login"), find_options),
    Rule(has_any("identified by", "$", "phrase", "mnemonic", "wandb"), find_others),
    Rule(_NAMES, find_named),
)
