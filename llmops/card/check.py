"""Whether a card still says what the record says."""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from llmops.card.claim import is_claim
from llmops.card.render import FORMATS, claims_of, digest_line, front_matter
from llmops.errors import BadRequest, InvalidEvidence
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict

_FRONT = re.compile(r"---\n(?P<yaml>.*?)\n---\n", re.DOTALL)
_RECIPE = re.compile(r"^```yaml\n(?P<yaml>.*?)\n```$", re.DOTALL | re.MULTILINE)
_DIGEST_LINE = re.compile(r"\| (?P<kind>[a-z ]+) \| `(?P<digest>[0-9a-f]{64})` \|")


@dataclass(frozen=True)
class Checked:
    """A card that holds: whose it is, and how many of its lines were compared."""

    model_name: str
    n_claims: int
    n_free_lines: int  # of prose, which nothing is claimed in


def check_card(registry: Registry, text: str) -> Checked:
    """Compare a card's claims, digests, front matter and recipe with the records.

    A record that came later does not make a card wrong; a line that no record says does.

    Raises:
        BadRequest: the text is no card of an adapter of this workspace.
        InvalidEvidence: a claim, digest, setting or the recipe is not what the record says, or a record is gone.
    """
    adapter = next(
        (m["digest"] for m in map(_digest, text.splitlines()) if m and m["kind"] == "adapter"), None
    )
    if adapter is None:
        raise BadRequest("card: names no adapter in its table of digests; write it with `llmops card`")
    record = registry.adapter(adapter)
    claims = claims_of(registry, record)
    lines, tables = {claim.line for claim in claims}, {digest_line(claim) for claim in claims}
    n_claims = 0
    body = _without_blocks(text)
    for number, line in enumerate(body, start=1):
        known = lines if is_claim(line) else tables if _digest(line) else None
        if known is not None and line not in known:
            raise InvalidEvidence(
                f"card:{number}: no record says {line!r}; write the card again with `llmops card`"
            )
        n_claims += known is lines
    needed = {claim.line for claim in claims if claim.kind in ("adapter", "base")}
    if lost := sorted(needed - set(body)):
        raise InvalidEvidence(f"card: does not say {lost[0]!r}; write the card again with `llmops card`")
    _require_front(text, [front_matter(record, format) for format in FORMATS])
    _require_recipe(text, registry.lineage(record).recipe)
    n_free = sum(
        bool(line.strip()) and not line.startswith(("#", "|")) and not is_claim(line) for line in body
    )
    return Checked(record.model_name, n_claims, n_free)


def _digest(line: str) -> re.Match[str] | None:
    return _DIGEST_LINE.fullmatch(line)


def _without_blocks(text: str) -> list[str]:
    """The card's lines, those of front matter and recipe emptied so that numbers stay the file's."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    return _RECIPE.sub(blank, _FRONT.sub(blank, text, count=1)).split("\n")


def _require_front(text: str, allowed: list[dict[str, object]]) -> None:
    front = _FRONT.match(text)
    try:
        values = yaml.safe_load(front["yaml"]) if front else None
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise InvalidEvidence(
            "card: its front matter cannot be read; write the card again with `llmops card`"
        )
    values.pop("license", None)  # given by whoever wrote the card: no record knows it
    if values not in allowed:
        raise InvalidEvidence(
            f"card: its front matter says {values}, the record {allowed[0]}; write the card again with `llmops card`"
        )


def _require_recipe(text: str, recipe: JsonDict) -> None:
    block = _RECIPE.search(text)
    try:
        found = yaml.safe_load(block["yaml"]) if block else {}
    except yaml.YAMLError:
        found = None
    if found != recipe:
        raise InvalidEvidence(
            "card: its recipe is not the one on record; write the card again with `llmops card`"
        )
