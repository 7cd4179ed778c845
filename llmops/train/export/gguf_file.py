"""`export --as gguf`: the merged model as one GGUF file for llama.cpp and what is built on it.

The Llama family of dense models with byte-level BPE; what was not proved is refused by name. Checked by reading the
file back through transformers' own reader: every tensor's bytes, the tokenizer, and the adapter's probes.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmops.errors import BadRequest, InvalidEvidence
from llmops.registry.bases import Base
from llmops.schema import JsonDict, Progress, no_progress
from llmops.train.export.gguf_vocabulary import READ_BY_TRANSFORMERS, Vocabulary, read_vocabulary
from llmops.train.export.match import Match, Tolerance, adapter_answers, compare, measure, require_match
from llmops.train.export.merge import read_back, require_plain
from llmops.train.export.place import new_folder, require_free
from llmops.train.export.source import Exported, Source, finish, note_export

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

    from llmops.train.export.weights import MergedWeights

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' `model_type` -> the architecture llama.cpp computes it with."""
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def write_gguf(
    source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress = no_progress
) -> Exported:
    """Write base and adapter as one GGUF file in a new folder, check it, and tell the ledger.

    Vectors stay f32; matrices get the type `dtype`, those whose rows q8_0 cannot divide f16.

    Raises:
        BadRequest: the path is taken, or the base is of a kind that is not written.
        InvalidEvidence: what was written is not read back as it should be; nothing is left behind.
        StoreError: the disk did not take it; nothing is left behind.
    """
    require_free(out)
    shape = read_shape(source.base)
    vocabulary = read_vocabulary(source.base.path, shape.config["vocab_size"], source.base.contract)
    name = f"{source.record.name}-{dtype}.gguf"
    with new_folder(out) as stage:
        _write(_Job(source, shape, vocabulary, dtype), stage / name, progress)
        match = _check(source, stage / name, vocabulary, tolerance, progress)
        made = finish(source, stage, Exported(out, "gguf", dtype, "", match))
    note_export(source, made)
    return made


@dataclass(frozen=True)
class Shape:
    """A base's configuration, and what llama.cpp calls its architecture."""

    architecture: str
    config: JsonDict

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return int(
            self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]
        )

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values."""
        return int(self.config.get("num_key_value_heads") or self.config["num_attention_heads"])


@dataclass(frozen=True)
class _Job:
    source: Source
    shape: Shape
    vocabulary: Vocabulary
    dtype: str


def read_shape(base: Base) -> Shape:
    """The base's shape as far as GGUF can tell it.

    Raises:
        BadRequest: another architecture, or one of its settings that was not proved to be read alike.
    """
    config: JsonDict = json.loads((base.path / "config.json").read_text())
    kind, where = config.get("model_type"), f"base model {base.ref}"
    require_plain(base)
    if kind not in ARCHITECTURES:
        raise BadRequest(f"{where}: is a {kind} model; as GGUF are written {', '.join(ARCHITECTURES)}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    refused = {
        f"rope scaling {scaling}": scaling != "default",
        f"hidden_act {config.get('hidden_act')}": config.get("hidden_act") != "silu",
        "biases of the MLP": bool(config.get("mlp_bias")),
        "sliding-window attention": bool(config.get("sliding_window"))
        and config.get("use_sliding_window", True),
        "a part of each head rotated": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    for what, there in refused.items():
        if there:
            raise BadRequest(f"{where}: has {what}, which is not written as GGUF here; export safetensors")
    return Shape(ARCHITECTURES[kind], config)


def _write(job: _Job, path: Path, progress: Progress) -> None:
    """Write the file, a tensor at a time, and read every tensor's bytes back.

    Raises:
        BadRequest: a tensor has no name in GGUF.
        InvalidEvidence: a tensor is not there as it was written.
    """
    import gguf

    from llmops.train.export.weights import MergedWeights

    weights = MergedWeights(job.source.base, job.source.folder)
    names = _names(job.shape, weights)
    writer = gguf.GGUFWriter(path, job.shape.architecture)
    _write_header(writer, job)
    types = {name: _type(weights.shape(name), job.dtype) for name in names}
    for name, called in names.items():
        in_bytes = gguf.quant_shape_to_byte_shape(weights.shape(name), types[name])
        numpy_type = _numpy_type(types[name])
        shape = in_bytes if numpy_type.itemsize == 1 else weights.shape(name)
        writer.add_tensor_info(called, shape, numpy_type, math.prod(in_bytes), types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    digests: dict[str, str] = {}
    for name, called in names.items():
        data = _data(job.shape, weights, name, types[name])
        digests[called] = hashlib.sha256(data.data).hexdigest()
        writer.write_tensor_data(data)
        progress(len(digests), len(names), "writing")
    writer.close()
    found = {t.name: hashlib.sha256(t.data.tobytes()).hexdigest() for t in gguf.GGUFReader(path).tensors}
    for called, digest in digests.items():
        if found.get(called) != digest:
            raise InvalidEvidence(
                f"{path.name}: {called} is not there as it was written; nothing is kept, run again"
            )


def _names(shape: Shape, weights: MergedWeights) -> dict[str, str]:
    """GGUF's name of each tensor, in the order of writing.

    Raises:
        BadRequest: one has none.
    """
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == shape.architecture)
    table = gguf.get_tensor_name_map(arch, shape.config["num_hidden_layers"])
    tied = bool(shape.config.get("tie_word_embeddings"))
    found = {}
    for name in weights.names:
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue  # computed by the reader; the same matrix as the embedding
        called = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise BadRequest(f"{name}: has no name in GGUF's {shape.architecture}; export safetensors")
        found[name] = called
    return found


def _write_header(writer: GGUFWriter, job: _Job) -> None:
    import gguf

    config, shape = job.shape.config, job.shape
    rope = config.get("rope_parameters") or {}
    writer.add_type("model")
    writer.add_name(job.source.record.model_name)
    writer.add_string("llmops.adapter", job.source.record.adapter)
    writer.add_string("llmops.base", job.source.base.digest)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[job.dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    job.vocabulary.write(writer, job.source.base.contract.eos_token_ids)


def _type(shape: tuple[int, ...], dtype: str) -> GGMLQuantizationType:
    import gguf

    wanted = gguf.GGMLQuantizationType[dtype.upper()]
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _numpy_type(kind: GGMLQuantizationType) -> Any:
    """The type an array of this kind is written as: bytes for what numpy has none for."""
    import numpy as np

    return np.dtype({"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8))


def _data(shape: Shape, weights: MergedWeights, name: str, kind: GGMLQuantizationType) -> Any:
    """A tensor's array as it stands in the file, C-contiguous."""
    import gguf
    import numpy as np

    array = weights.tensor(name).numpy()
    if shape.architecture == "llama":
        if ".q_proj." in name:
            array = _interleaved(array, shape.config["num_attention_heads"])
        elif ".k_proj." in name:
            array = _interleaved(array, shape.n_kv_heads)
    return np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(array), kind))


def _interleaved(array: Any, n_heads: int) -> Any:
    """Rows of each head from halves to pairs: llama.cpp's llama rotates neighbours, transformers' rotates halves."""
    halves = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _check(
    source: Source, path: Path, vocabulary: Vocabulary, tolerance: Tolerance, progress: Progress
) -> Match:
    """Read the file through transformers in fp32 and hold tokenizer and answers against the adapter's.

    Raises:
        InvalidEvidence: one differs.
    """
    where = f"{source.where} as {path.name}"
    _require_tokenizer(source, path, vocabulary, where)
    progress(0, 0, "answering with the adapter")
    answers = adapter_answers(source.base.path, source.folder, source.probes)
    progress(0, 0, "answering with the GGUF file")
    model = read_back(path.parent, where, path.name)
    match = compare(source.probes, measure(model, source.probes, answers), tolerance)
    require_match(match, where)
    return match


def _require_tokenizer(source: Source, path: Path, vocabulary: Vocabulary, where: str) -> None:
    """Refuse a file whose tokenizer, as read back, has another chat template or makes other ids of the probes' texts.

    Raises:
        InvalidEvidence: names what differs.
    """
    from transformers import AutoTokenizer

    from llmops.train.model import load_tokenizer

    ours = load_tokenizer(source.base)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    if theirs.chat_template != source.base.contract.chat_template:
        raise InvalidEvidence(f"{where}: has another chat template than the base; nothing is kept, run again")
    if vocabulary.split not in READ_BY_TRANSFORMERS:
        return  # its vocabulary is the file's, but its texts would be split otherwise by this reader alone
    for row in source.probes.token_ids:
        text = ours.decode(row, skip_special_tokens=False)
        mine, read = (t(text, add_special_tokens=False)["input_ids"] for t in (ours, theirs))
        if mine != read:
            raise InvalidEvidence(
                f"{where}: its tokenizer reads {text[:40]!r} as {read[:8]}, the base's as {mine[:8]}; nothing is kept"
            )
