"""`merge`: base and adapter as one model, written as a folder that transformers, vLLM and recipes take as a base model.

Merged in fp32 and written in the type that is asked for, shard by shard: of the model no more than one shard is in
memory while it is written. Every tensor is read back bit by bit, and the whole answers the adapter's probes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmops.chat import read_contract, require_same_contract
from llmops.errors import BadRequest, InvalidEvidence, StoreError
from llmops.manifest import MANIFEST
from llmops.registry.bases import SOURCE_FILE, Base, folder_digest
from llmops.schema import JsonDict, Progress, no_progress
from llmops.train.export.match import Match, Tolerance, adapter_answers, compare, measure, require_match
from llmops.train.export.place import new_folder, require_free
from llmops.train.export.source import Exported, Source, finish, note_export

if TYPE_CHECKING:
    from torch import Tensor

TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
INDEX_FILE = "model.safetensors.index.json"
MERGED_KIND = "merged"
"""The store's kind of merged models."""
SHARD_BYTES = 5 * 10**9
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".md", ".index.json", MANIFEST, SOURCE_FILE)


def merge(
    source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress = no_progress
) -> Exported:
    """Write base and adapter as one model, check that it answers as the adapter does, and tell the ledger.

    Args:
        source: see `open_source`.
        out: a path that is free; the folder appears there when the check has passed.
        dtype: type of the written weights, one of `TORCH_NAMES`.
        tolerance: how far the answers may differ.
        progress: told what is being done.

    Raises:
        BadRequest: the path is taken, or the base's files cannot be merged into.
        InvalidEvidence: the files are not what was written, or answer otherwise; nothing is left behind.
        StoreError: the disk did not take it; nothing is left behind.
    """
    made = _merged(source, out, dtype, tolerance, progress)
    made = replace(made, as_base=folder_digest(out))
    note_export(source, made)
    return made


def merge_into_store(
    source: Source, scratch: Path, dtype: str, tolerance: Tolerance, progress: Progress = no_progress
) -> Path:
    """As `merge`, with the merged model in the store (kind `merged`); returns its folder there.

    Args:
        source: see `open_source`.
        scratch: a path for the files until they are stored; what lies there is removed.
        dtype: type of the written weights, one of `TORCH_NAMES`.
        tolerance: how far the answers may differ.
        progress: told what is being done.

    Raises:
        InvalidEvidence, StoreError, BadRequest: as `merge`.
    """
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed here and goes on
    scratch.parent.mkdir(parents=True, exist_ok=True)
    made = _merged(source, scratch, dtype, tolerance, progress)
    progress(0, 0, "storing the merged model")
    store = source.registry.store
    try:
        stored = store.put_folder(MERGED_KIND, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    folder = store.path(MERGED_KIND, stored)
    note_export(source, replace(made, as_base=folder_digest(folder)), stored)
    return folder


def _merged(source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress) -> Exported:
    require_free(out)
    with new_folder(out) as stage:
        write_model(source, stage, dtype, progress)
        match = check_merged(source, stage, tolerance, progress)
        return finish(source, stage, Exported(out, "safetensors", dtype, "", match))


def write_model(source: Source, folder: Path, dtype: str, progress: Progress = no_progress) -> None:
    """Write weights, configuration, tokenizer and chat template of the merged model into an empty folder.

    Raises:
        BadRequest: the base's files cannot be merged into.
        InvalidEvidence: a tensor read back is not the one that was written.
        StoreError: the disk did not take it.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    from llmops.train.export.weights import MergedWeights

    require_plain(source.base)
    _copy_small_files(source.base, folder, dtype)
    weights, target = MergedWeights(source.base, source.folder), getattr(torch, TORCH_NAMES[dtype])
    shapes = {n: torch.empty(weights.shape(n), dtype=target, device="meta") for n in weights.names}
    plan = split_torch_state_dict_into_shards(shapes, max_shard_size=SHARD_BYTES)
    n_done = 0
    for file, names in plan.filename_to_tensors.items():
        shard: dict[str, Tensor] = {}
        for name in names:
            tensor = weights.tensor(name)
            shard[name] = tensor.to(target).contiguous() if tensor.is_floating_point() else tensor
            progress(n_done := n_done + 1, len(weights.names), "merging")
        _write_shard(shard, folder / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def check_merged(source: Source, folder: Path, tolerance: Tolerance, progress: Progress) -> Match:
    """Read a merged model in fp32 and hold its answers against the adapter's; one model is in memory at a time.

    Raises:
        InvalidEvidence: the files cannot be read, have another prompt contract, or answer otherwise.
    """
    where = f"{source.where} merged"
    require_same_contract(read_contract(folder), source.base.contract, where)
    progress(0, 0, "answering with the adapter")
    answers = adapter_answers(source.base.path, source.folder, source.probes)
    progress(0, 0, "answering with the merged model")
    model = read_back(folder, where)
    match = compare(source.probes, measure(model, source.probes, answers), tolerance)
    require_match(match, where)
    return match


def read_back(folder: Path, where: str, gguf: str | None = None) -> Any:
    """The model in a folder as transformers reads it, in fp32.

    Args:
        folder: holds safetensors, or the file `gguf`.
        where: the files, for messages.
        gguf: name of a GGUF file, to be unpacked.

    Raises:
        InvalidEvidence: it cannot be read, or lacks tensors.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    packed = {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)} if gguf else {}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **packed
        )
    except Exception as error:  # whatever a reader says of files that are not what they should be
        raise InvalidEvidence(
            f"{where}: cannot be read back ({error}); nothing is kept, run again"
        ) from error
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise InvalidEvidence(
            f"{where}: read back without {lacking[0]} ({len(lacking)} such); nothing is kept, run again"
        )
    return model.eval()


def require_plain(base: Base) -> None:
    """Refuse a base whose weights are packed.

    Raises:
        BadRequest: says how they are.
    """
    packed = json.loads((base.path / "config.json").read_text()).get("quantization_config")
    if packed:
        raise BadRequest(
            f"base model {base.ref}: its weights are packed ({packed.get('quant_method')}); merging needs plain ones, "
            "train on the base they were made from"
        )


def small_files(base: Base) -> list[Path]:
    """The base's files that are no weights: configuration, tokenizer, chat template."""
    return [
        path
        for path in sorted(base.path.iterdir())
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_NOT_COPIED)
    ]


def _copy_small_files(base: Base, folder: Path, dtype: str) -> None:
    for path in small_files(base):
        shutil.copyfile(path, folder / path.name)
    config: JsonDict = json.loads((base.path / "config.json").read_text())
    config.pop("torch_dtype", None)  # what older transformers called it
    config["dtype"] = TORCH_NAMES[dtype]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_shard(shard: dict[str, Tensor], path: Path) -> None:
    """Write tensors to a file and read each back.

    Raises:
        InvalidEvidence: one is missing or not the same bits.
        StoreError: the disk did not take it.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    try:
        save_file(shard, path, metadata={"format": "pt"})
        with safe_open(str(path), framework="pt") as file:
            found = {name: _sha256(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{path.name}: could not be written ({error}); free space, then run again"
        ) from error
    for name, tensor in shard.items():
        if found.get(name) != _sha256(tensor):
            raise InvalidEvidence(
                f"{path.name}: {name} is not there as it was written; nothing is kept, check the disk"
            )


def _sha256(tensor: Tensor) -> str:
    import torch

    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
