"""Personal data that has a form of its own: where it stands in a text, and texts with it taken out.

presidio-analyzer's recognisers (extra `pii`) do the finding: patterns, checksums, Google's telephone numbers and the
public suffix list. They run without a language model, so names and street addresses are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeAlias

from llmops.data.quality.config import Pii
from llmops.data.quality.findings import Finding, Found
from llmops.data.quality.texts import AnyRow, T, map_texts, texts_of
from llmops.errors import ConfigError

INSTALL = "pip install 'llmops[pii]'"

Recogniser: TypeAlias = Any

# What a text must have before a recogniser is worth its time; each is looser than the recogniser itself.
_DIGITS = re.compile(r"\d")
_UNICAST = ipaddress.ip_network("2000::/3")  # all IPv6 addresses in use; `a[1::2]` is none
_ADDRESS = re.compile(r"\d\.\d|::|[0-9A-Fa-f]:[0-9A-Fa-f]")
_MAY_HOLD: dict[str, Callable[[str], bool]] = {
    "EMAIL_ADDRESS": lambda text: "@" in text,
    "PHONE_NUMBER": lambda text: len(_DIGITS.findall(text)) >= 5,
    "CREDIT_CARD": lambda text: len(_DIGITS.findall(text)) >= 12,
    "IBAN_CODE": lambda text: len(_DIGITS.findall(text)) >= 2,
    "US_SSN": lambda text: len(_DIGITS.findall(text)) >= 9,
    "IP_ADDRESS": lambda text: _ADDRESS.search(text) is not None,
}


def installed() -> bool:
    """Whether presidio-analyzer is there; it is not loaded."""
    return find_spec("presidio_analyzer") is not None


@dataclass(frozen=True)
class Span:
    """`text[start:end]` is an entity; where several overlap it covers them all and has the name of the surest."""

    start: int
    end: int
    entity: str
    score: float


def personal_data(rows: Sequence[AnyRow], settings: Pii) -> Found:
    """Rows that hold personal data, those with most of it first; the distribution counts entities by name.

    Raises:
        ConfigError: presidio-analyzer is not installed.
    """
    counts: Counter[str] = Counter()
    findings = []
    for i, row in enumerate(rows):
        here = Counter(span.entity for text in texts_of(row) for span in spans_of(text, settings))
        counts += here
        if here:
            what = ", ".join(f"{n} {entity}" for entity, n in sorted(here.items()))
            findings.append(Finding(i, f"pii: {what}", sum(here.values())))
    return Found(tuple(findings), dict(counts.most_common()))


def redact_row(row: T, settings: Pii) -> T:
    """The row with the entity's name in the place of every finding, as in <EMAIL_ADDRESS>; all else is as it was."""
    return map_texts(row, lambda text: redact(text, settings))


def redact(text: str, settings: Pii) -> str:
    """The text with every finding replaced by its entity's name in angle brackets."""
    parts, at = [], 0
    for span in spans_of(text, settings):
        parts += [text[at : span.start], f"<{span.entity}>"]
        at = span.end
    return "".join((*parts, text[at:]))


def spans_of(text: str, settings: Pii) -> list[Span]:
    """The findings in a text, in order and without overlap.

    Raises:
        ConfigError: presidio-analyzer is not installed.
    """
    found = []
    for entity in settings.entities:
        if not _MAY_HOLD[entity](text):
            continue
        recogniser = _recogniser(entity, settings.phone_regions)
        for result in recogniser.analyze(text, [entity], None) or ():
            if result.score < settings.min_score:
                continue
            if entity == "IP_ADDRESS" and not _reachable(text[result.start : result.end]):
                continue
            found.append(Span(result.start, result.end, entity, result.score))
    return _merged(found)


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        if not merged or span.start >= merged[-1].end:
            merged.append(span)
            continue
        last = merged.pop()
        best = max((last, span), key=lambda s: (s.score, s.end - s.start))
        merged.append(Span(last.start, max(last.end, span.end), best.entity, best.score))
    return merged


def _reachable(text: str) -> bool:
    """Whether an address belongs to someone: private, local and documentation ranges do not, nor does `a[::2]`."""
    try:
        address = ipaddress.ip_interface(text).ip
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped.is_global
        return address in _UNICAST and address.is_global
    return address.is_global


@cache
def _recogniser(entity: str, regions: tuple[str, ...]) -> Recogniser:
    try:
        # Its package loads spaCy and, where they are installed, torch and transformers.
        from phonenumbers import SUPPORTED_REGIONS
        from presidio_analyzer import predefined_recognizers as presidio
        from tldextract import TLDExtract
    except ImportError as error:
        raise ConfigError(f"quality.pii: needs presidio-analyzer ({error}); {INSTALL}") from None

    if unknown := [region for region in regions if region not in SUPPORTED_REGIONS]:
        raise ConfigError(
            f"quality.pii.phone_regions: {unknown[0]!r} is no region; give ISO 3166 codes, such as US or GB"
        )
    # The list of domains that comes with tldextract: it would ask the network for a newer one otherwise.
    known_domains = TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Email(presidio.EmailRecognizer):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool:
            """Whether the address ends in a domain there can be."""
            return bool(known_domains(pattern_text).fqdn)

    makers: dict[str, Callable[[], Recogniser]] = {
        "EMAIL_ADDRESS": Email,
        "PHONE_NUMBER": lambda: presidio.PhoneRecognizer(supported_regions=regions),
        "CREDIT_CARD": presidio.CreditCardRecognizer,
        "IBAN_CODE": presidio.IbanRecognizer,
        "US_SSN": presidio.UsSsnRecognizer,
        "IP_ADDRESS": presidio.IpRecognizer,
    }
    return makers[entity]()
