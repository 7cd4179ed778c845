"""Tokenizer sanity: each fault is found by name, with advice; a sound base has none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from llmops.chat import read_contract
from llmops.registry.bases import Base
from llmops.train.sanity import Finding, tokenizer_findings
from tests.tiny import CHAT_TEMPLATE, IM_END_ID, IM_START, IM_START_ID


@pytest.fixture
def parts(tiny_model: Path, tmp_path: Path) -> tuple[Base, Any]:
    """A base whose config.json may be edited, and a tokenizer of its own."""
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    base = Base("tiny", tmp_path, "0" * 64, read_contract(tiny_model))
    return base, AutoTokenizer.from_pretrained(tiny_model)


def _found(base: Base, tokenizer: Any, check: str, **contract: Any) -> Finding:
    """The worst finding of one check."""
    rank = ("ok", "warn", "refuse")
    found = tokenizer_findings(base, tokenizer, replace(base.contract, **contract))
    return max((f for f in found if f.check == check), key=lambda f: rank.index(f.severity))


def test_sound_base_has_no_warning_and_one_finding_a_check(parts: tuple[Base, Any]) -> None:
    found = tokenizer_findings(*parts, parts[0].contract)
    assert {f.severity for f in found} == {"ok"}
    assert [f.check for f in found] == [
        "chat template", "end token", "pad token", "bos token", "model_max_length", "vocabulary",
    ]  # fmt: skip
    assert all(f.what and not f.advice for f in found)


def test_pad_equal_to_the_end_token_says_that_masking_is_by_position(parts: tuple[Base, Any]) -> None:
    found = _found(*parts, "pad token")
    assert f"({IM_END_ID}) is also an end token" in found.what
    assert "the end token is still trained on" in found.what
    parts[1].pad_token = None
    assert _found(*parts, "pad token").what.startswith("none; ")


def test_stop_token_that_the_template_never_writes_is_refused_with_both_tokens_named(
    parts: tuple[Base, Any],
) -> None:
    found = _found(*parts, "end token", eos_token_ids=(65,))
    assert (found.severity, "generation stops at 'A' (65)" in found.what) == ("refuse", True)
    assert "generation_config.json" in found.advice


def test_tokenizers_own_eos_that_generation_does_not_know_is_a_warning(parts: tuple[Base, Any]) -> None:
    parts[1].eos_token = IM_START
    found = _found(*parts, "end token")
    assert (found.severity, f"({IM_START_ID})" in found.what) == ("warn", True)


@pytest.mark.parametrize(
    ("template", "adds", "words"),
    [
        (IM_START + IM_START + CHAT_TEMPLATE, False, "writes .* twice"),
        (CHAT_TEMPLATE, True, "would add another"),
        (CHAT_TEMPLATE.replace(IM_START, "# "), True, "but the template does not"),
    ],
)
def test_doubled_or_missing_bos_is_a_warning_that_says_who_writes_it(
    parts: tuple[Base, Any], template: str, adds: bool, words: str
) -> None:
    base, tokenizer = parts
    if adds:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{IM_START} $A", special_tokens=[(IM_START, IM_START_ID)]
        )
    found = _found(base, tokenizer, "bos token", chat_template=template)
    assert found.severity == "warn"
    assert re.search(words, found.what), found.what


@pytest.mark.parametrize(
    ("template", "system", "severity", "words"),
    [
        ("{{ raise_exception('no') }}", None, "refuse", "refuses a plain question"),
        ("{% if x %}", None, "refuse", "refuses a plain question"),
        (CHAT_TEMPLATE + "{{ strftime_now('%d') }}", None, "warn", "the date of the day"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "Be brief.", "refuse",
         "does not write the system prompt 'Be brief.'"),
    ],
)  # fmt: skip
def test_template_that_cannot_be_trained_with_is_named(
    parts: tuple[Base, Any], template: str, system: str | None, severity: str, words: str
) -> None:
    found = _found(*parts, "chat template", chat_template=template, system=system)
    assert (found.severity, words in found.what) == (severity, True)
    assert found.advice


def test_length_limits_that_are_none_or_over_the_models_are_warnings(parts: tuple[Base, Any]) -> None:
    parts[1].model_max_length = int(1e30)
    assert "1e+30 is no limit; the model reads 512 positions" in _found(*parts, "model_max_length").what
    parts[1].model_max_length = 600
    assert _found(*parts, "model_max_length").what == "600 is over the model's 512 positions"


def test_tokens_beyond_the_embeddings_are_refused_by_name(parts: tuple[Base, Any]) -> None:
    base, tokenizer = parts
    tokenizer.add_tokens(["<new>"])
    found = _found(base, tokenizer, "vocabulary")
    assert (found.severity, found.what) == (
        "refuse", "the embeddings have 258 rows, none for '<new>' (258)",
    )  # fmt: skip
    config = json.loads((base.path / "config.json").read_text())
    (base.path / "config.json").write_text(json.dumps({**config, "vocab_size": 320}))
    assert (
        _found(base, tokenizer, "vocabulary").what == "259 tokens, 3 of them added, in 320 rows of embeddings"
    )
    assert "eos_token_id 400 is beyond" in _found(base, tokenizer, "vocabulary", eos_token_ids=(400,)).what


def test_finding_reads_like_an_error_message() -> None:
    assert str(Finding("pad token", "warn", "none", "add one")) == "pad token: none; add one"
