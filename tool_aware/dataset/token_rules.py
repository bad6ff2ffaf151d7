"""Tokens of providers, blocks of keys, and wallets: known by their form, wherever they stand.

The rules of detect-secrets are used where they are about the form of a token. They are made to find a token and match
its beginning; so what they find is extended to the whole word. The table below has the providers that they lack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest

from tool_aware.dataset.redaction_rules import Found, Rule, entropy_bits, has_any, is_random

_LONGEST_WORD = (
    4_000  # characters that are looked at together; tokens are shorter, longer headers are refused by servers
)
_WORD = re.compile(rf"[A-Za-z0-9_\-.:/+=~@]{{16,{_LONGEST_WORD}}}")
_ENDS = re.compile(r"[A-Za-z0-9_\-]*")

# Forms that detect-secrets lacks or knows in one length only: kind, pattern of the whole token.
_FORMS = (
    ("aws_access_key", r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("jwt", r"(?<![\w-])eyJ[\w-]{5,4000}\.[\w-]{5,4000}(?:\.[\w-]*)?"),
    ("google_key", r"AIza[\w-]{30,}|ya29\.[\w.-]{16,}|GOCSPX-[\w-]{20,}|1//0[\w-]{30,}"),
    ("azure_key", r"[\w~.]{3}\dQ~[\w~.-]{31,40}|AccountKey=[A-Za-z0-9+/]{60,}={0,2}"),
    ("slack_token", r"xox[abeoprs](?:\.xox[bp])?-[\w-]{10,}|xapp-[\w-]{10,}"
                    r"|hooks\.slack\.com/(?:services|workflows|triggers)/[\w/+-]{20,}"),
    ("stripe_key", r"(?:[srp]k_(?:live|test|prod)_|whsec_)[A-Za-z0-9]{10,}"),
    ("discord_token", r"mfa\.[\w-]{60,}|[MNO][\w-]{22,27}\.[\w-]{6}\.[\w-]{27,40}"
                      r"|discord(?:app)?\.com/api/webhooks/\d+/[\w-]{40,}"),
    ("telegram_token", r"\d{8,10}:[\w-]{35}(?![\w-])"),
    ("databricks_token", r"dapi[a-f0-9]{32}(?:-\d)?"),
    ("huggingface_token", r"hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}"),
    ("anthropic_key", r"sk-ant-[\w-]{16,}"),
    ("openai_key", r"sk-(?:proj-|svcacct-|admin-|or-v1-|lf-)?[\w-]{16,}"),
    ("github_token", r"gh[pousr]_\w{20,}|github_pat_\w{20,}"),
    ("gitlab_token", r"gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-[\w.-]{16,}"),
    ("npm_token", r"npm_[A-Za-z0-9]{20,}"),
    ("pypi_token", r"pypi-[\w-]{16,}"),
    ("wandb_key", r"wandb_v1_\w{20,}"),
    ("digitalocean_token", r"do[opr]_v1_[a-f0-9]{32,}"),
    ("shopify_token", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{24,}"),
    ("mailgun_key", r"key-[0-9a-f]{32}"),
    ("sendgrid_key", r"SG\.[\w-]{16,}\.[\w-]{16,}"),
    ("age_key", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    ("provider_key", r"(?:r8|gsk|fw|pplx|xai|nvapi|tvly|ntn|secret|sbp|figd|lin_api|rdme|rubygems|pul|glc|glsa|dckr_pat"
                     r"|PMAK|NRAK|sntrys|sntryu|hvs|hvb|dp\.pt|dp\.st|pscale_(?:tkn|pw|oauth)|xkeysib"
                     r"|sq0[a-z]{3}|tfp|HRKU|lsv2_(?:pt|sk)|e2b|ctx7sk|phc|phx|pcsk|jina|voyage|csk|cfut)"
                     r"[_.-][\w.=-]{20,}|EAA[A-Z][A-Za-z0-9]{40,}|AT[AC]TT3[\w=-]{40,}|\w{14}\.atlasv1\.[\w-]{40,}"),
)  # fmt: skip
_HARD_TO_MISTAKE = {
    "aws_access_key",
    "slack_token",
    "jwt",
    "azure_key",
    "telegram_token",
    "databricks_token",
}  # need no second look
_PREFIXED = tuple((kind, re.compile(rf"(?<![A-Za-z0-9])(?:{pattern})")) for kind, pattern in _FORMS)
_TELEGRAM_URL = re.compile(r"(?<=/bot)\d{8,10}:[\w-]{35}")  # letters stand in front of it
_SECRET_SIGNATURE = re.compile(r"[?&;]sig=(?P<secret>[\w%+/=-]{16,500})")
_SLACK_URL = re.compile(r"(?:https?://)?(?=hooks\.slack\.com/)")


@cache
def _known_forms() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return the patterns of detect-secrets; its import takes a tenth of a second, which most runs do not need."""
    from detect_secrets.plugins import (
        artifactory,
        azure_storage_key,
        discord,
        github_token,
        gitlab_token,
        mailchimp,
        pypi_token,
        sendgrid,
        slack,
        square_oauth,
        stripe,
        telegram_token,
        twilio,
    )

    detectors = (
        ("artifactory_key", artifactory.ArtifactoryDetector),
        ("azure_key", azure_storage_key.AzureStorageKeyDetector),
        ("discord_token", discord.DiscordBotTokenDetector),
        ("github_token", github_token.GitHubTokenDetector),
        ("gitlab_token", gitlab_token.GitLabTokenDetector),
        ("mailchimp_key", mailchimp.MailchimpDetector),
        ("pypi_token", pypi_token.PypiTokenDetector),
        ("sendgrid_key", sendgrid.SendGridDetector),
        ("slack_token", slack.SlackDetector),
        ("square_token", square_oauth.SquareOAuthDetector),
        ("stripe_key", stripe.StripeDetector),
        ("telegram_token", telegram_token.TelegramBotTokenDetector),
        ("twilio_key", twilio.TwilioKeyDetector),
    )
    return tuple(
        (kind, re.compile(rf"(?<![A-Za-z0-9])(?:{pattern.pattern})", pattern.flags))
        for kind, detector in detectors
        for pattern in detector.denylist
    )


def find_tokens(text: str) -> Iterator[Found]:
    """Yield tokens of known providers, each as the whole word that it is."""
    for word in _WORD.finditer(text):
        yield from _tokens_of(word[0], word.start())


def _tokens_of(word: str, offset: int) -> Iterator[Found]:
    if len(set(word)) < 8:
        return
    for kind, pattern in (*_PREFIXED, *_known_forms(), ("telegram_token", _TELEGRAM_URL)):
        for match in pattern.finditer(word):
            start = match.end() - len(match[0].lstrip(' ":='))
            ending = _ENDS.match(word, match.end())
            end = ending.end() if ending else match.end()
            token = word[start:end]
            if token.startswith("AccountKey="):
                start += len("AccountKey=")
            if kind in _HARD_TO_MISTAKE or is_random(token):
                while word.startswith("=", end):  # the padding of base64
                    end += 1
                yield Found(kind, offset + start, offset + end)


def find_signatures(text: str) -> Iterator[Found]:
    """Yield the signatures of URLs that give access by themselves, as Azure's and Google's do."""
    for match in _SECRET_SIGNATURE.finditer(text):
        yield Found("url_signature", match.start("secret"), match.end("secret"))


# ---- keys and addresses without a prefix ------------------------------------------------------------------

_BASE64_40 = re.compile(r"(?<![A-Za-z0-9/+=_-])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_-])")
_LEAST_ENTROPY = 4.3  # bits a character: of 2,000 drawn keys of 40 characters, the lowest has 4.4; paths have under 4.2


def find_bare_keys(text: str) -> Iterator[Found]:
    """Yield AWS secret keys, which are 40 characters of base64 and nothing else; a git hash is lower hexadecimal."""
    for match in _BASE64_40.finditer(text):
        kinds = (str.isupper, str.islower, str.isdigit)
        if all(any(map(test, match[0])) for test in kinds) and entropy_bits(match[0]) >= _LEAST_ENTROPY:
            yield Found("aws_secret_key", match.start(), match.end())


_WALLET = re.compile(
    r"(?<![A-Za-z0-9])(?:0x[0-9a-fA-F]{40}|(?:bc|tb|ltc)1[02-9ac-hj-np-z]{25,87}|(?:BC|TB|LTC)1[02-9AC-HJ-NP-Z]{25,87}"
    r"|[13][1-9A-HJ-NP-Za-km-z]{25,34}|[LMD][1-9A-HJ-NP-Za-km-z]{33}|T[1-9A-HJ-NP-Za-km-z]{33}|4[1-9A-HJ-NP-Za-km-z]{94})(?![A-Za-z0-9])"
)


def find_wallets(text: str) -> Iterator[Found]:
    """Yield addresses of Bitcoin, Ethereum, Litecoin, Dogecoin, Tron and Monero."""
    for match in _WALLET.finditer(text):
        address = match[0]
        if len(set(address[4:])) < 8:  # the address zero
            continue
        if address[0] in "13LMDT4" and not (is_random(address) and any(map(str.islower, address))):
            continue
        yield Found("wallet", match.start(), match.end())


# ---- blocks ------------------------------------------------------------------------------------------------

_BEGIN = re.compile(r"-{4,5} ?BEGIN (?P<label>[A-Z0-9][A-Z0-9 ]{2,60}?) ?-{4,5}")
_LINE_OF_BASE64 = re.compile(r"[A-Za-z0-9+/=]{16}")
_CUT = re.compile(r"(?:\s|\\[nrt])*+(?:[A-Za-z0-9+/=]{16,}+(?:\s|\\[nrt])*+)++(?:[A-Za-z0-9+/=]++(?=\s|\\|$))?")
_SSH = re.compile(
    r"(?<![\w-])(?:(?:sk-)?(?:ssh|ecdsa)-[a-z0-9-]{3,20}(?:@openssh\.com)?|ssh-dss)\s{1,4}(?P<secret>AAAA[A-Za-z0-9+/]{40,4000}={0,2})"
)
_PUTTY, _PUTTY_END = "PuTTY-User-Key-File-", "Private-MAC:"
_BARE_OPENSSH = re.compile(r"(?<![A-Za-z0-9+/])b3BlbnNzaC1rZXktdjE[A-Za-z0-9+/=\s]{100,8000}")


def find_blocks(text: str) -> Iterator[Found]:
    """Yield PEM and PGP blocks with their frame; a block that was cut off ends with its last line of base64."""
    begins = list(_BEGIN.finditer(text))
    for begin, following in zip_longest(begins, begins[1:]):
        limit = following.start() if following else len(text)
        ending = begin[0].replace("BEGIN", "END")
        end = text.find(ending, begin.end(), limit)
        if end >= 0 and _LINE_OF_BASE64.search(text, begin.end(), end):
            yield Found(_kind_of_block(begin["label"]), begin.start(), end + len(ending))
        elif end < 0 and (cut := _CUT.match(text, begin.end(), limit)):
            yield Found(_kind_of_block(begin["label"]), begin.start(), begin.end() + len(cut[0].rstrip()))


def _kind_of_block(label: str) -> str:
    if "PRIVATE KEY" in label:
        return "private_key"
    return "pgp_block" if "PGP" in label else "pem_block"


def find_ssh_keys(text: str) -> Iterator[Found]:
    """Yield SSH keys on one line, and the body of OpenSSH's private key without its frame."""
    for match in _SSH.finditer(text):
        yield Found("ssh_key", match.start(), match.end())
    for match in _BARE_OPENSSH.finditer(text):
        yield Found("private_key", match.start(), match.end())
    at = text.find(_PUTTY)
    if at >= 0 and (end := text.find(_PUTTY_END, at)) >= 0:
        line = text.find("\n", end)
        yield Found("private_key", at, line if line >= 0 else len(text))


def _has_word(text: str, _: str) -> bool:
    return _WORD.search(text) is not None


RULES = (
    Rule(has_any("-begin ", "- begin "), find_blocks),
    Rule(has_any("aaaa", "putty-user", "b3blbnnzac1rzxktdje"), find_ssh_keys),
    Rule(_has_word, find_tokens),
    Rule(has_any("sig="), find_signatures),
    Rule(_has_word, find_wallets),
    Rule(_has_word, find_bare_keys),
)
