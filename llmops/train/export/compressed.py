"""`export --as compressed`: the merged model quantised for vLLM by llmcompressor, in an environment of its own.

llmcompressor wants an older transformers than training does. It is run as a child (`quantize_child.py`), which also
reads its files back and answers the probes; what it says is judged here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llmops.chat import read_contract, require_same_contract
from llmops.errors import ConfigError, CouldNotRun
from llmops.schema import JsonDict, Progress, no_progress
from llmops.settings import find_workspace
from llmops.train.export.match import (
    Answer,
    Match,
    Measured,
    Tolerance,
    adapter_answers,
    compare,
    require_match,
)
from llmops.train.export.merge import small_files, write_model
from llmops.train.export.place import new_folder, require_free
from llmops.train.export.source import Exported, Source, finish, note_export

SCHEMES = {"w8a8": "W8A8", "fp8": "FP8_DYNAMIC", "w4a16": "W4A16"}
"""Types of weights -> presets of compressed-tensors: 8-bit integers (activations too), 8-bit floats (activations too),
4-bit integers in groups of 128 (activations stay 16-bit)."""
PYTHON_VARIABLE = "LLMOPS_QUANTIZE_PYTHON"
VENV = ".venv-quantize"
CHILD = Path(__file__).with_name("quantize_child.py")
_OTHER_ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def write_compressed(
    source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress = no_progress
) -> Exported:
    """Write the merged model quantised, check that it answers as the adapter does, and tell the ledger.

    Rounding is to the nearest number, without calibration data.

    Raises:
        BadRequest: the path is taken, or the base's files cannot be merged into.
        ConfigError: there is no environment with llmcompressor; says how to make one.
        CouldNotRun: llmcompressor failed, with its last words.
        InvalidEvidence: the answers differ; nothing is left behind.
        StoreError: the disk did not take it; nothing is left behind.
    """
    require_free(out)
    python = find_python()
    with (
        new_folder(out) as stage,
        tempfile.TemporaryDirectory(dir=stage.parent, prefix=".quantize-") as scratch,
    ):
        merged = Path(scratch) / "merged"
        merged.mkdir()
        write_model(source, merged, "bf16", progress)
        progress(0, 0, "answering with the adapter")
        answers = adapter_answers(source.base.path, source.folder, source.probes)
        progress(0, 0, "quantising")
        job = _job(source, merged, stage, (SCHEMES[dtype], answers))
        measured = _run(python, job, Path(scratch) / "job.json")
        for path in small_files(source.base):
            if not (stage / path.name).exists():
                shutil.copyfile(path, stage / path.name)
        match = _judge(source, stage, measured, tolerance)
        made = finish(source, stage, Exported(out, "compressed", dtype, "", match))
    note_export(source, made)
    return made


def find_python() -> Path:
    """The interpreter of the environment that has llmcompressor: LLMOPS_QUANTIZE_PYTHON, else the workspace's.

    Raises:
        ConfigError: there is none.
    """
    given = os.environ.get(PYTHON_VARIABLE)
    python = Path(given) if given else find_workspace().root / VENV / "bin" / "python"
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise ConfigError(
            f"compressed: no interpreter at {python}; run `sh serving/install-quantize.sh`, or set {PYTHON_VARIABLE} "
            "to one whose environment has llmcompressor"
        )
    return python.absolute()


def _job(source: Source, merged: Path, out: Path, what: tuple[str, Sequence[Answer]]) -> JsonDict:
    scheme, answers = what
    return {
        "model": str(merged),
        "out": str(out),
        "scheme": scheme,
        "token_ids": [list(row) for row in source.probes.token_ids],
        "answers": [asdict(answer) for answer in answers],
        "result": str(merged.parent / "result.json"),
    }


def _run(python: Path, job: JsonDict, file: Path) -> Measured:
    """Let the child do the job.

    Raises:
        CouldNotRun: it ended without a result.
    """
    file.write_text(json.dumps(job))
    inherited = {name: value for name, value in os.environ.items() if name not in _OTHER_ENVIRONMENT}
    done = subprocess.run(
        [str(python), "-P", str(CHILD), str(file)],
        env=inherited | _QUIET,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    result = Path(job["result"])
    if done.returncode or not result.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise CouldNotRun(
            f"compressed: llmcompressor ended with code {done.returncode} "
            f"({lines[-1].strip() if lines else 'no words'}); see that {python} has llmcompressor 0.14"
        )
    found = json.loads(result.read_text())
    return Measured(
        tuple(tuple(row) for row in found["logprobs"]), tuple(tuple(row) for row in found["shortfalls"])
    )


def _judge(source: Source, folder: Path, measured: Measured, tolerance: Tolerance) -> Match:
    where = f"{source.where} quantised"
    require_same_contract(read_contract(folder), source.base.contract, where)
    match = compare(source.probes, measured, tolerance)
    require_match(match, where)
    return match
