"""What the embedded engine generates equals `generate`, alone and in any mix, as rows come and go."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.embedded_child import (
    BASE_NAME,
    Running,
    chat_ids,
    generated,
    oracle,
    prompt_logprobs,
    running_here,
)
from tests.tiny import build_tiny_adapter, build_tiny_model

N_PLACES = 6
PROMPTS = [
    "Hi",
    "What is 2+2?",
    "def f(x): return x ** 2  # " + "long " * 40,
    "Naïve café, 日本語 and 🙂",
    "a",
    "Summarise: " + "the quick brown fox " * 12,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("batch") / "model", max_len=4096)


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    room = tmp_path_factory.mktemp("batch-adapters")
    return {
        BASE_NAME: None,
        "one@111111111111": build_tiny_adapter(model, room / "one", seed=1),
        "two@222222222222": build_tiny_adapter(model, room / "two", seed=2),
    }


@pytest.fixture(scope="module")
def engine(model: Path, adapters: dict[str, Path | None]) -> Iterator[Running]:
    with running_here(
        model, ["--max-num-seqs", str(N_PLACES), "--max-loras", "3", "--max-waiting", "40"]
    ) as engine:
        for name, path in adapters.items():
            if path is not None:
                assert engine.load(name, path).status_code == 200
        yield engine


def expected(model: Path, adapter: Path | None, prompt: str, n_tokens: int) -> dict[str, Any]:
    ids = generated(model, adapter, chat_ids(model, prompt), n_tokens)
    tokenizer, _ = oracle(model, None)
    return {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)}


def answered(engine: Running, name: str, prompt: str, n_tokens: int) -> dict[str, Any]:
    choice = engine.chat(prompt, model=name, max_tokens=n_tokens, return_token_ids=True)["choices"][0]
    return {"ids": choice["token_ids"], "text": choice["message"]["content"]}


def streamed(engine: Running, name: str, prompt: str, n_tokens: int) -> dict[str, Any]:
    body = {"model": name, "messages": [{"role": "user", "content": prompt}], "max_tokens": n_tokens}
    body |= {"temperature": 0, "stream": True, "return_token_ids": True}
    text, ids = "", []
    for chunk in events(engine, "/v1/chat/completions", body):
        choice = chunk["choices"][0]
        text += choice["delta"].get("content", "")
        ids += choice.get("token_ids", [])
    return {"ids": ids, "text": text}


def events(engine: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx.stream("POST", engine.url + path, json=body, timeout=120) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_greedy_answers_alone_equal_generate(engine, model, adapters):
    for name, path in adapters.items():
        for prompt in PROMPTS:
            assert answered(engine, name, prompt, 24) == expected(model, path, prompt, 24)


def test_the_two_adapters_and_the_base_answer_differently(model, adapters):
    texts = {expected(model, path, PROMPTS[0], 24)["text"] for path in adapters.values()}
    assert len(texts) == 3


def test_greedy_answers_in_a_mixed_batch_joined_late_equal_generate(engine, model, adapters):
    jobs = [(name, prompt, 16 + 7 * i) for i, prompt in enumerate(PROMPTS) for name in adapters]
    most_running = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most_running
        while not done.is_set():
            most_running = max(most_running, engine.get("/load")["n_running"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit((answered, streamed)[i % 2], engine, *job) for i, job in enumerate(jobs)]
        got = [future.result() for future in futures]
    done.set()
    watcher.join()
    assert got == [expected(model, adapters[name], prompt, n) for name, prompt, n in jobs]
    assert 1 < most_running <= N_PLACES


def test_a_prompt_longer_than_one_prefill_chunk_equals_generate(engine, model):
    ids = [(7 * i * i + i) % 256 for i in range(3000)]
    body = {"prompt": ids, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    choice = engine.post("/v1/completions", body).json()["choices"][0]
    assert choice["token_ids"] == generated(model, None, ids, 8)


def test_echoed_logprobs_equal_a_plain_forward_for_rows_of_very_different_length(engine, model, adapters):
    prompts = [[5, 9, 200], [(3 * i * i + 11) % 256 for i in range(700)], [65], [i % 256 for i in range(90)]]
    for name, path in adapters.items():
        body = {"model": name, "prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 1}
        choices = engine.post("/v1/completions", body).json()["choices"]
        for ids, choice in zip(prompts, choices, strict=True):
            scored = choice["logprobs"]
            assert scored["token_logprobs"][0] is None
            assert scored["top_logprobs"][0] is None
            assert scored["token_logprobs"][1:] == pytest.approx(prompt_logprobs(model, path, ids), abs=2e-4)


def test_adapters_move_the_echoed_logprobs(engine, adapters):
    body = {"prompt": PROMPTS[1], "max_tokens": 0, "echo": True, "logprobs": 0}
    sums = set()
    for name in adapters:
        scored = engine.post("/v1/completions", body | {"model": name}).json()["choices"][0]["logprobs"]
        sums.add(round(sum(scored["token_logprobs"][1:]), 2))
    assert len(sums) == 3


def test_answer_logprobs_are_those_of_the_raw_model_before_temperature(engine, model):
    answer = engine.chat(
        "Hi", max_tokens=6, temperature=0.5, seed=3, logprobs=True, top_logprobs=3, return_token_ids=True
    )
    choice = answer["choices"][0]
    ids = chat_ids(model, "Hi")
    wanted = prompt_logprobs(model, None, ids + choice["token_ids"])[len(ids) - 1 :]
    entries = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == pytest.approx(wanted, abs=1e-4)
    for entry in entries:
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert tops[0] >= entry["logprob"] - 1e-6


def test_a_seed_gives_the_same_answer_alone_and_in_company(engine, adapters):
    fields = {"model": "one@111111111111", "max_tokens": 24, "temperature": 1.2, "top_p": 0.9, "seed": 11}
    alone = engine.chat("Tell me", **fields)["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(8) as pool:
        company = [
            pool.submit(answered, engine, name, prompt, 30) for name in adapters for prompt in PROMPTS[:2]
        ]
        together = pool.submit(lambda: engine.chat("Tell me", **fields)).result()
        other = pool.submit(lambda: engine.chat("Tell me", **fields | {"seed": 12})).result()
        for future in company:
            future.result()
    assert together["choices"][0]["message"]["content"] == alone
    assert other["choices"][0]["message"]["content"] != alone


def test_several_answers_of_one_prompt_differ_repeat_and_keep_their_order(engine):
    fields = {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 12}
    first = engine.chat("Hi", **fields)
    again = engine.chat("Hi", **fields)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert texts[1] == engine.chat("Hi", **fields | {"n": 1, "seed": 6})["choices"][0]["message"]["content"]
    assert first["usage"]["completion_tokens"] == 36


def test_top_k_one_is_greedy(engine, model):
    fields = {"temperature": 1.5, "top_k": 1, "max_tokens": 16, "return_token_ids": True}
    assert engine.chat("Hi", **fields)["choices"][0]["token_ids"] == expected(model, None, "Hi", 16)["ids"]


def test_an_unloaded_adapter_finishes_its_rows_then_frees_its_slot(engine, model, adapters, tmp_path):
    path = build_tiny_adapter(model, tmp_path / "three", seed=3)
    assert engine.load("three@333333333333", path).status_code == 200
    full = engine.load("four@444444444444", path)
    assert full.status_code == 400
    assert "3 adapter slots (--max-loras) are taken" in full.json()["error"]["message"]
    with ThreadPoolExecutor(1) as pool:
        ids = chat_ids(model, "Hi")
        body = {"model": "three@333333333333", "prompt": ids, "max_tokens": 400, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        running_row = pool.submit(engine.post, "/v1/completions", body)
        engine.wait_for_load(1)
        gone = engine.post("/v1/unload_lora_adapter", {"lora_name": "three@333333333333"})
        assert gone.status_code == 200
        assert engine.post("/v1/completions", body).status_code == 404
        got = running_row.result().json()["choices"][0]["token_ids"]
    wanted = generated(model, path, ids, 60)
    assert got[: len(wanted)] == wanted
    assert len(got) == 400
    assert engine.load("four@444444444444", path).status_code == 200
    assert answered(engine, "four@444444444444", "Hi", 16) == expected(model, path, "Hi", 16)
    engine.post("/v1/unload_lora_adapter", {"lora_name": "four@444444444444"})
    for name, kept in adapters.items():
        assert answered(engine, name, "Hi", 16) == expected(model, kept, "Hi", 16)


ENDLESS = {"prompt": "Once", "max_tokens": 4000, "temperature": 0, "ignore_eos": True}


class Client:
    """A client that can hang up: a bare socket with one request on it."""

    def __init__(self, engine: Running, body: dict[str, Any]) -> None:
        host, port = engine.url.removeprefix("http://").split(":")
        payload = json.dumps(body).encode()
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
        self.socket.sendall(head.encode() + payload)

    def hang_up(self) -> None:
        self.socket.close()


def test_a_lost_client_frees_its_place_in_all_three_windows(engine):
    others = [Client(engine, ENDLESS | {"stream": True}) for _ in range(N_PLACES - 1)]
    whole = Client(engine, ENDLESS)
    engine.wait_for_load(N_PLACES)
    queued = Client(engine, ENDLESS | {"stream": True})
    engine.wait_for_load(N_PLACES, 1)
    queued.hang_up()  # before its first token
    engine.wait_for_load(N_PLACES, 0)
    whole.hang_up()  # while it waits for a whole answer
    engine.wait_for_load(N_PLACES - 1, 0)
    assert b"data: " in others[0].socket.recv(65536)
    others[0].hang_up()  # mid-stream
    engine.wait_for_load(N_PLACES - 2, 0)
    for client in others[1:]:
        client.hang_up()
    engine.wait_for_load(0)


def test_a_full_queue_answers_503_and_says_when_to_come_back(engine):
    busy = [Client(engine, ENDLESS) for _ in range(N_PLACES)]
    engine.wait_for_load(N_PLACES)
    waiting = Client(engine, ENDLESS | {"prompt": ["x"] * 40})
    engine.wait_for_load(N_PLACES, 40)
    refused = engine.post("/v1/completions", ENDLESS)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "ServiceUnavailableError"
    for client in [*busy, waiting]:
        client.hang_up()
    engine.wait_for_load(0)
    assert engine.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200


def test_more_answers_than_the_queue_holds_are_refused_at_once(engine):
    refused = engine.post("/v1/completions", {"prompt": ["x"] * 41, "max_tokens": 1})
    assert refused.status_code == 400
    assert "41 answers in one request; at most 40" in refused.json()["error"]["message"]


async def test_a_step_that_breaks_answers_its_rows_and_spares_the_next(model):
    from llmops.engines.embedded.batcher import Batcher, Limits
    from llmops.engines.embedded.model import LanguageModel, ModelSpec
    from llmops.engines.embedded.row import Progress, Row, RowRequest
    from llmops.engines.embedded.sampling import Sampling

    language_model = LanguageModel(ModelSpec(model, BASE_NAME, "float32", "cpu"))
    batcher = Batcher(language_model, Limits(), asyncio.get_running_loop())
    faults = [2]

    def out_of_memory(module: object, args: object) -> None:
        faults[0] -= 1
        if faults[0] == 0:
            raise RuntimeError("not enough memory")

    language_model.net.register_forward_pre_hook(out_of_memory)
    batcher.start()

    async def answer() -> Progress:
        inbox: asyncio.Queue[Progress] = asyncio.Queue()
        request = RowRequest((72, 105), Sampling(max_tokens=4, temperature=0.0))
        batcher.submit([Row(request, inbox.put_nowait)])
        return await asyncio.wait_for(inbox.get(), 60)

    broken = await answer()
    assert broken.finish_reason == "error"
    assert "not enough memory" in (broken.error or "")
    healthy = await answer()
    assert [token.token_id for token in healthy.tokens] == generated(model, None, [72, 105], 4)
    assert batcher.alive
    await asyncio.to_thread(batcher.stop)
