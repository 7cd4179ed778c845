"""A teacher behind an OpenAI endpoint: its answers to a recipe's prompts, kept as they come and frozen as a snapshot.

Speaks HTTP; reads and writes `teacher/` in the workspace's state, one file of answers for each teacher.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from filelock import FileLock

from llmops.chat import with_system
from llmops.data.quarantine import DROPPED_FILE, dropped_lines, row_text
from llmops.data.rows import canonical_line
from llmops.errors import BadRequest, ConfigError, CouldNotRun
from llmops.records import DatasetSnapshot, Dropped, Message, Row
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, Progress, canonical_json, digest_of, short
from llmops.train.recipe import EndpointTeacher, Recipe
from llmops.train.rows import Source

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 10.0
CACHE = "teacher"


@dataclass(frozen=True)
class Said:
    """A teacher's answer, and why it ended."""

    text: str
    finish_reason: str | None


def answered(
    source: Source, recipe: Recipe, teacher: EndpointTeacher, registry: Registry, progress: Progress
) -> Source:
    """The rows with the teacher's answers in place of their own, frozen as a snapshot of their own.

    Args:
        source: the rows whose prompts are asked.
        recipe: its name is the snapshot's, its default system prompt goes before conversations that bring none.
        teacher: where, who and how.
        registry: its store gets the snapshot; answers are kept beside the store.
        progress: told how many are answered.

    Raises:
        ConfigError: the variable that shall hold the key is not set.
        BadRequest: the endpoint refuses to be asked so, in its own words.
        CouldNotRun: it does not answer; what it has said is kept, and asked for no more.
    """
    prompts = [with_system(row.messages[:-1], recipe.system) for row in source.rows]
    with AnswerFile(registry.store.root.parent / CACHE, teacher) as kept:
        wanted = [prompt for row, prompt in zip(source.rows, prompts, strict=True) if row.tools is None]
        ask_all(teacher, wanted, kept, progress)
        found = [_answer_row(row, kept.get(prompt)) for row, prompt in zip(source.rows, prompts, strict=True)]
    rows = tuple(one for one in found if isinstance(one, Row))
    dropped = (*source.dropped, *(one for one in found if isinstance(one, Dropped)))
    said = ", ".join(
        f"{name} {value}" for name, value in teacher.decoding.model_dump().items() if value != ()
    )
    asked = f"{source.snapshot.name}@{short(source.snapshot.digest())}"
    origin = f"answers of {teacher.model} at {teacher.url} ({said}) to the prompts of {asked}"
    snapshot = _frozen(rows, dropped, registry, (f"{recipe.name}-teacher", source.snapshot.licence, origin))
    return Source(snapshot, rows, dropped)


def _frozen(
    rows: Sequence[Row], dropped: Sequence[Dropped], registry: Registry, about: tuple[str, str, str]
) -> DatasetSnapshot:
    """Rows in the store, as a dataset of this name, licence and origin."""
    files = {
        "train.jsonl": b"".join(canonical_line(row) + b"\n" for row in rows),
        DROPPED_FILE: dropped_lines(dropped),
    }
    name, licence, origin = about
    snapshot = DatasetSnapshot(
        name=name,
        artifact=registry.store.put_files("dataset", files),
        n_rows={"train": len(rows)},
        n_dropped=dict(sorted(Counter(d.kind for d in dropped).items())),
        licence=licence,
        origin=origin,
    )
    registry.store.put_record(snapshot)
    return snapshot


def _answer_row(row: Row, said: Said | None) -> Row | Dropped:
    """The row with the teacher's answer, or why it has none that can be learnt."""
    if said is None:
        return Dropped(row.source, "tools: a teacher is asked for text alone", row_text(row))
    if said.finish_reason == "length":
        return Dropped(row.source, "cut: the teacher's answer reached decoding.max_tokens", row_text(row))
    if not said.text.strip():
        return Dropped(row.source, "empty answer: the teacher said nothing", row_text(row))
    # Templates strip or keep white space around an answer as they like; the answer is what stands between it.
    return replace(row, messages=(*row.messages[:-1], Message("assistant", said.text.strip())))


class AnswerFile:
    """What one teacher has said so far: a line a prompt, by the prompt's digest. One process at a time."""

    def __init__(self, folder: Path, teacher: EndpointTeacher) -> None:
        """Read the answers of this teacher, under this decoding, that lie in `folder`."""
        about = {"url": teacher.url, "model": teacher.model, "decoding": teacher.decoding.model_dump()}
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{digest_of(about)}.jsonl"
        self._lock = FileLock(f"{self.path}.lock")
        self._found: dict[str, Said] = {}

    def __enter__(self) -> AnswerFile:
        """Take the file, waiting for who has it."""
        self._lock.acquire()
        text = self.path.read_bytes() if self.path.is_file() else b""
        if text and not text.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")
        for line in text.splitlines():
            try:
                data = json.loads(line)
                self._found[data["prompt"]] = Said(data["text"], data["finish_reason"])
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut when the machine stopped is asked for again
        return self

    def __exit__(self, *_: object) -> None:
        """Let the file go."""
        self._lock.release()

    def get(self, prompt: Sequence[Message]) -> Said | None:
        """The answer to a prompt, if there is one."""
        return self._found.get(_key(prompt))

    def add(self, prompt: Sequence[Message], said: Said) -> None:
        """Keep an answer, on the disk before anything else is asked."""
        key = _key(prompt)
        line = {"prompt": key, "text": said.text, "finish_reason": said.finish_reason}
        with self.path.open("ab") as file:
            file.write(canonical_json(line) + b"\n")
        self._found[key] = said


def _key(prompt: Sequence[Message]) -> str:
    return digest_of([message.spelling for message in prompt])


def ask_all(
    teacher: EndpointTeacher, prompts: Sequence[Sequence[Message]], kept: AnswerFile, progress: Progress
) -> None:
    """Ask for every answer that is not kept yet, each prompt once. Raises as `answered`."""
    open_ = list({_key(prompt): prompt for prompt in prompts if kept.get(prompt) is None}.values())
    if open_:
        asyncio.run(_Asking(teacher, kept, progress, len(open_)).all(open_))


class _Asking:
    """Questions under way at one endpoint; the first that finds no answer ends them all."""

    def __init__(self, teacher: EndpointTeacher, kept: AnswerFile, progress: Progress, n_open: int) -> None:
        self.teacher, self.kept, self.progress = teacher, kept, progress
        self.n_open, self.n_done = n_open, 0
        self.where = f"teacher {teacher.model} at {teacher.url}"
        key = os.environ.get(teacher.api_key_env) if teacher.api_key_env else None
        if teacher.api_key_env and not key:
            raise ConfigError(
                f"{self.where}: the environment variable {teacher.api_key_env} (api_key_env) is not set; set it"
            )
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def all(self, prompts: Sequence[Sequence[Message]]) -> None:
        """Ask them, as many at once as the teacher's setting allows."""
        waiting = list(reversed(prompts))
        connector = aiohttp.TCPConnector(limit=self.teacher.concurrency)
        async with aiohttp.ClientSession(headers=self.headers, connector=connector) as session:

            async def work() -> None:
                while waiting:
                    await self._one(session, waiting.pop())

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.teacher.concurrency, len(prompts))):
                        group.create_task(work())
            except ExceptionGroup as errors:  # several questions fail alike: one error says it
                raise errors.exceptions[0] from None

    async def _one(self, session: aiohttp.ClientSession, prompt: Sequence[Message]) -> None:
        give_up, wait_s = time.monotonic() + self.teacher.retry_s, FIRST_WAIT_S
        while isinstance(found := await self._once(session, prompt), str):
            if time.monotonic() + wait_s > give_up:
                raise CouldNotRun(
                    f"{self.where}: does not answer ({found}; asked again for {self.teacher.retry_s:g} s); the "
                    f"{self.n_done:,} of {self.n_open:,} answers it gave are kept: start it, and run the recipe again"
                )
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        self.kept.add(prompt, found)
        self.n_done += 1
        self.progress(self.n_done, self.n_open, f"answers of {self.teacher.model}")

    async def _once(self, session: aiohttp.ClientSession, prompt: Sequence[Message]) -> Said | str:
        """The answer, or why there is none now."""
        decoding = self.teacher.decoding
        body: JsonDict = {"model": self.teacher.model, "messages": [m.to_turn() for m in prompt]}
        body |= {name: value for name, value in decoding.model_dump(mode="json").items() if value != []}
        timeout = aiohttp.ClientTimeout(total=self.teacher.answer_s)
        url = f"{self.teacher.url.rstrip('/')}/chat/completions"
        try:
            async with session.post(url, json=body, timeout=timeout) as response:
                raw = await response.read()
        except TimeoutError:
            return f"no answer within {self.teacher.answer_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        if response.status in BUSY:
            return f"HTTP {response.status}: {_words(raw)}"
        if response.status != 200:
            raise BadRequest(f"{self.where}: HTTP {response.status}: {_words(raw)}; correct method.teacher")
        return _said(raw)


def _said(raw: bytes) -> Said | str:
    try:
        choice: Any = json.loads(raw)["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
        return Said("" if text is None else str(text), None if finish is None else str(finish))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"malformed answer: {type(error).__name__}: {raw[:200]!r}"


def _words(raw: bytes) -> str:
    """The message of an OpenAI error, else the start of what came."""
    try:
        found: Any = json.loads(raw)
        error = found.get("error", found)
        return str(error.get("message") or error)[:300]
    except (ValueError, AttributeError):
        return raw[:300].decode(errors="replace") or "without a word"
