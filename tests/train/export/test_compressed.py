"""Quantised for vLLM: what llmcompressor's child is asked, how its answers are judged, and what to do without it.

The default tier plays the child with a program of its own; the walk tier runs llmcompressor where
LLMOPS_QUANTIZE_PYTHON or .venv-quantize has it.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from llmops.train.importer import ImportRequest, import_adapter
from tests.tiny import build_tiny_adapter, build_tiny_model
from tests.train.export.support import Shop, llmops

ROOT = Path(__file__).parents[3]
CHILD = """\
import json, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[-1]).read_text())
out = pathlib.Path(job["out"])
(out / "model.safetensors").write_bytes((pathlib.Path(job["model"]) / "model.safetensors").read_bytes())
for name in ("config.json", "generation_config.json"):
    (out / name).write_bytes((pathlib.Path(job["model"]) / name).read_bytes())
pathlib.Path({notes!r}).write_text(json.dumps({{"scheme": job["scheme"], "path": sys.path[:1]}}))
known = json.loads(pathlib.Path({probes!r}).read_text())
rows = [[x + {shift} for x in row] for row in known]
answers = [[0.0] * len(answer["tokens"]) for answer in job["answers"]]
pathlib.Path(job["result"]).write_text(json.dumps({{"logprobs": rows, "shortfalls": answers}}))
"""


def _pretend(shop: Shop, monkeypatch: pytest.MonkeyPatch, shift: float = 0.25, fails: bool = False) -> Path:
    """An interpreter that plays the quantised model: the adapter's own answers, off by `shift` nats."""
    probes, notes = shop.root / "probes.json", shop.root / "notes.json"
    probes.write_text(json.dumps(shop.registry.probes(shop.record).adapter_logprobs))
    script = shop.root / "child.py"
    script.write_text(
        "raise RuntimeError('no such scheme')"
        if fails
        else CHILD.format(notes=str(notes), probes=str(probes), shift=shift)
    )
    python = shop.root / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S {script} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("LLMOPS_QUANTIZE_PYTHON", str(python))
    return notes


@pytest.mark.parametrize(("dtype", "scheme"), [("w8a8", "W8A8"), ("fp8", "FP8_DYNAMIC"), ("w4a16", "W4A16")])
def test_the_childs_answers_are_judged_and_its_files_get_tokenizer_and_card(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, dtype: str, scheme: str
) -> None:
    notes = _pretend(shop, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    out = shop.root / "quantised"
    said = llmops("export", "docs", out, "--as", "compressed", "--type", dtype)
    assert said.code == 0, said.error
    told = json.loads(notes.read_text())
    assert told["scheme"] == scheme
    assert "/elsewhere" not in told["path"]
    assert "0.25 nats a token" in said.out
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "config.json", "model.safetensors"):
        assert (out / name).is_file(), name
    assert json.loads((out / "llmops_source.json").read_text())["match"]["mean_nats"] == pytest.approx(0.25)
    assert [event["dtype"] for event in shop.events("adapter.exported")] == [dtype]


def test_answers_that_are_too_far_off_are_refused_and_removed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(shop, monkeypatch, shift=1.1)
    before = sorted(shop.root.iterdir())
    said = llmops("export", "docs", shop.root / "quantised", "--as", "compressed", "--type", "fp8")
    assert said.code == 4
    assert "differ by 1.1 nats a token on its probes, 0.5 is allowed" in said.error
    assert set(shop.root.iterdir()) - set(before) <= {shop.root / "notes.json"}


def test_a_child_that_fails_is_told_in_its_own_words(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(shop, monkeypatch, fails=True)
    said = llmops("export", "docs", shop.root / "quantised", "--as", "compressed")
    assert said.code == 5
    assert "RuntimeError: no such scheme" in said.error
    assert not list(shop.root.glob("*quanti*"))


def test_without_the_environment_it_says_what_to_run(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOPS_QUANTIZE_PYTHON", raising=False)
    said = llmops("export", "docs", shop.root / "quantised", "--as", "compressed")
    assert said.code == 2
    assert "run `sh serving/install-quantize.sh`" in said.error
    assert "w4a4" in llmops("export", "docs", shop.root / "q", "--as", "compressed", "--type", "w4a4").error


@pytest.mark.walk
@pytest.mark.parametrize("dtype", ["w8a8", "fp8", "w4a16"])
def test_llmcompressor_itself_quantises_the_merged_model(shop: Shop, tmp_path: Path, dtype: str) -> None:
    found = os.environ.get("LLMOPS_QUANTIZE_PYTHON") or ROOT / ".venv-quantize" / "bin" / "python"
    if not Path(found).is_file():
        pytest.skip("no environment with llmcompressor; sh serving/install-quantize.sh")
    os.environ["LLMOPS_QUANTIZE_PYTHON"] = str(found)
    base = build_tiny_model(tmp_path / "base", hidden=128)  # W4A16 rounds in groups of 128
    adapter = build_tiny_adapter(base, tmp_path / "adapter")
    import_adapter(ImportRequest(adapter, str(base), "wide"), shop.workspace)
    said = llmops("export", "wide", tmp_path / "out", "--as", "compressed", "--type", dtype, "--tolerance", 2)
    assert said.code == 0, said.error
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["quantization_config"]["ignore"] == ["lm_head"]
