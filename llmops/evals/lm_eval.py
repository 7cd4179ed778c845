"""Tasks of lm-evaluation-harness against the served endpoint, one system after the other.

lm-eval runs as a process of its own and asks through a witness, so that its numbers belong to the system that answered.
Writes a session's folder (`<model>/results*.json`, samples, `lm-eval.log`), the store (kind `lm_eval`) and the ledger
(`lm_eval.stored`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from llmops.engines.endpoint import Endpoint, EndpointStatus, Patience, System, engine_digest
from llmops.engines.systems import load_adapters, system_of
from llmops.errors import BadRequest, CouldNotRun
from llmops.evals.evidence import engine_fault
from llmops.evals.run import named_adapters, noted
from llmops.evals.session import new_session
from llmops.evals.witness import witness
from llmops.records import AdapterRecord
from llmops.registry.adapters import Registry
from llmops.registry.bases import resolve_base
from llmops.schema import JsonDict, Progress, no_progress
from llmops.settings import Workspace

LOG_FILE = "lm-eval.log"
SAID_LINES = 5


@dataclass(frozen=True)
class TaskRequest:
    """Which tasks, at which endpoint, by which adapters beside their base.

    `api` is `chat`, or `completions` for tasks that compare log-probabilities, which needs the base's tokenizer here.
    """

    endpoint: str
    tasks: tuple[str, ...]
    adapters: tuple[str, ...] = ("latest",)
    include_path: Path | None = None
    api: Literal["chat", "completions"] = "chat"
    limit: int | None = None
    concurrency: int = 16
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class TaskResult:
    """What lm-eval says of one system; `artifact` is the digest of its files in the store."""

    system: str
    model: str
    artifact: str
    results: JsonDict
    n_answers: int
    invalid: tuple[str, ...]


def run_tasks(
    request: TaskRequest, workspace: Workspace, progress: Progress = no_progress
) -> tuple[Path, list[TaskResult]]:
    """Run lm-eval's tasks on base, champions and adapters; the session's folder, and one result a system.

    Raises:
        BadRequest: lm-eval is not installed, or no task or no such adapter is named.
        CouldNotRun: the endpoint does not answer, or lm-eval failed; its log has the rest.
    """
    if not request.tasks:
        raise BadRequest("eval lm-eval: no task is named; give --tasks")
    own_version = _version()
    registry = Registry.of(workspace)
    adapters = named_adapters(registry, request.adapters)
    session = new_session(workspace, "lm-eval")
    with session.locked(), noted(registry, session.name):
        found = asyncio.run(_run_all(request, registry, adapters, session.folder, progress))
        for result in found:
            registry.ledger.append(
                "lm_eval.stored",
                {
                    "session": session.name,
                    "model": result.model,
                    "artifact": result.artifact,
                    "tasks": list(request.tasks),
                    "version": own_version,
                    "invalid": list(result.invalid),
                },
            )
    return session.folder, found


def _version() -> str:
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise BadRequest("eval lm-eval: lm-eval is not installed; pip install 'llmops[lm-eval]'") from None


async def _run_all(
    request: TaskRequest,
    registry: Registry,
    adapters: Sequence[AdapterRecord],
    folder: Path,
    progress: Progress,
) -> list[TaskResult]:
    async with Endpoint(request.endpoint, request.concurrency, request.patience) as endpoint:
        await load_adapters(endpoint, adapters, progress)
        before = await endpoint.status()
        systems = [before.base, *(system_of(record, before) for record in adapters)]
        asked = _Asked(request, endpoint.url, before, _tokenizer(request, adapters))
        found = []
        for i, system in enumerate(systems):
            progress(i, len(systems), f"lm-eval asks {system.model}")
            found.append((system, *await _run_one(asked, system, folder / system.model)))
        changed = engine_fault(before.engine, (await endpoint.status()).engine, "during the session")
    results = []
    for system, n_answers, faults in found:
        files = _files(folder / system.model)
        main = next(content for name, content in sorted(files.items()) if name.startswith("results"))
        results.append(
            TaskResult(
                system.model,
                system.digest,
                registry.store.put_files("lm_eval", files),
                json.loads(main)["results"],
                n_answers,
                (*faults, *changed),
            )
        )
    return results


@dataclass(frozen=True)
class _Asked:
    request: TaskRequest
    url: str
    status: EndpointStatus
    tokenizer: Path | None


def _tokenizer(request: TaskRequest, adapters: Sequence[AdapterRecord]) -> Path | None:
    return resolve_base(adapters[0].base_ref).path if request.api == "completions" else None


async def _run_one(asked: _Asked, system: System, folder: Path) -> tuple[int, list[str]]:
    """Run lm-eval on one system into `folder`; how many answers it had, and what is wrong with them."""
    folder.mkdir()
    async with witness(asked.url, system, engine_digest(asked.status.engine)) as heard:
        with (folder / LOG_FILE).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *_command(asked, heard.url, system, folder), stdout=log, stderr=asyncio.subprocess.STDOUT
            )
            try:
                code = await process.wait()
            except BaseException:
                process.kill()
                raise
    if code != 0:
        said = (folder / LOG_FILE).read_text(errors="replace").strip().splitlines()[-SAID_LINES:]
        raise CouldNotRun(
            f"lm-eval on {system.model}: ended with {code} ({said[-1] if said else 'no word'}); see {folder / LOG_FILE}"
        )
    return heard.n_answers, heard.faults()


def _command(asked: _Asked, url: str, system: System, folder: Path) -> list[str]:
    request = asked.request
    path = "chat/completions" if request.api == "chat" else "completions"
    model: dict[str, Any] = {
        "base_url": f"{url}/v1/{path}",
        "model": system.model,
        "num_concurrent": request.concurrency,
        "max_retries": 5,
        "timeout": int(request.patience.answer_s),
    }
    if asked.tokenizer is not None:
        model |= {"tokenizer": asked.tokenizer, "tokenizer_backend": "huggingface"}
    command = [sys.executable, "-P", "-m", "lm_eval", "run", "--model", f"local-{path.replace('/', '-')}"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
    command += [
        "--tasks",
        ",".join(request.tasks),
        "--output_path",
        str(folder / "results.json"),
        "--log_samples",
    ]
    if request.api == "chat":
        command += ["--apply_chat_template"]
    if request.include_path is not None:
        command += ["--include_path", str(request.include_path)]
    if request.limit is not None:
        command += ["--limit", str(request.limit)]
    return command


def _files(folder: Path) -> dict[str, bytes]:
    """lm-eval's results and samples, by name."""
    found = {path.name: path.read_bytes() for path in sorted(folder.rglob("*.json*")) if path.is_file()}
    if not any(name.startswith("results") for name in found):
        raise CouldNotRun(f"lm-eval: left no results in {folder}; see {folder / LOG_FILE}")
    return found
