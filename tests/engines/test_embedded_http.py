"""The embedded engine's HTTP surface: shapes, errors and limits that a client of `vllm serve` relies on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from safetensors.torch import load_file, save_file

from tests.engines.embedded_child import BASE_NAME, Running, chat_ids, generated, oracle, running_here
from tests.tiny import IM_END_ID, SYSTEM_PROMPT, build_tiny_adapter, build_tiny_model

ONE = "one@111111111111"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("http") / "model")


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_adapter(model, tmp_path_factory.mktemp("http-adapter") / "one", seed=1)


@pytest.fixture(scope="module")
def engine(model: Path, adapter: Path) -> Iterator[Running]:
    with running_here(model, ["--max-model-len", "256", "--max-loras", "3"]) as engine:
        assert engine.load(ONE, adapter).text == f"Success: LoRA adapter '{ONE}' added successfully."
        yield engine


def chunks(engine: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx.stream("POST", engine.url + path, json=body, timeout=120) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error object after checking that it has OpenAI's shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == status
    error: dict[str, Any] = body["error"]
    return error


def test_models_lists_base_and_adapters_with_their_parent(engine, model, adapter):
    cards = {card["id"]: card for card in engine.get("/v1/models")["data"]}
    assert cards[BASE_NAME]["parent"] is None
    assert cards[BASE_NAME]["max_model_len"] == 256
    assert cards[BASE_NAME]["root"] == str(model)
    assert cards[ONE]["parent"] == BASE_NAME
    assert cards[ONE]["root"] == str(adapter)


def test_version_names_what_could_change_an_answer(engine):
    import peft
    import torch
    import transformers

    about = engine.get("/version")
    assert about == {
        "version": transformers.__version__,
        "engine": "transformers",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "dtype": "float32",
        "device": "cpu",
    }


def test_the_official_client_runs_chat_streams_and_completions(engine, model, adapter):
    client = openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0)
    tokenizer, _ = oracle(model, None)
    wanted = tokenizer.decode(generated(model, adapter, chat_ids(model, "Hi"), 12), skip_special_tokens=True)
    ask: dict[str, Any] = {"model": ONE, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    whole = client.chat.completions.create(**ask, max_completion_tokens=12)
    assert whole.choices[0].message.content == wanted
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(chat_ids(model, "Hi"))
    stream = client.chat.completions.create(
        **ask, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    pieces = list(stream)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == wanted
    assert pieces[-1].usage == whole.usage
    completion = client.completions.create(
        model=ONE, prompt="ab", max_tokens=3, temperature=0, logprobs=2, echo=True
    )
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens[:2] == ["a", "b"]
    assert {card.id for card in client.models.list()} >= {BASE_NAME, ONE}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ask | {"model": "nobody"})


def test_a_chat_stream_opens_with_the_role_and_ends_with_reason_and_usage(engine):
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "temperature": 0,
        "stream": True,
    }
    got = chunks(engine, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in got}) == 1
    assert [c["choices"][0]["finish_reason"] for c in got[:-1]] == [None] * (len(got) - 2) + ["length"]
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["completion_tokens"] == 5
    assert "usage" not in chunks(engine, "/v1/chat/completions", body)[-1]


def test_streamed_choices_of_several_answers_join_to_the_whole_ones(engine):
    body = {"prompt": ["ab", "cd"], "n": 2, "seed": 4, "max_tokens": 9, "logprobs": 1, "echo": True}
    whole = engine.post("/v1/completions", body).json()["choices"]
    joined = [{"text": "", "tokens": [], "text_offset": [], "token_logprobs": []} for _ in range(4)]
    for chunk in chunks(engine, "/v1/completions", body | {"stream": True}):
        choice = chunk["choices"][0]
        mine = joined[choice["index"]]
        mine["text"] += choice["text"]
        for name in ("tokens", "text_offset", "token_logprobs"):
            mine[name] += choice["logprobs"][name]
    assert [choice["index"] for choice in whole] == [0, 1, 2, 3]
    for choice, mine in zip(whole, joined, strict=True):
        assert mine["text"] == choice["text"]
        assert mine["tokens"] == choice["logprobs"]["tokens"]
        assert mine["text_offset"] == choice["logprobs"]["text_offset"]
        assert mine["token_logprobs"][0] is None
        assert mine["token_logprobs"][1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-4)


def test_end_of_sequence_is_counted_and_leaves_no_text(engine, model, adapter):
    tokenizer, _ = oracle(model, None)
    ending = next(
        (prompt, ids)
        for prompt in (f"Question {i}" for i in range(200))
        if (ids := generated(model, adapter, chat_ids(model, prompt), 60))[-1] == IM_END_ID
    )
    prompt, ids = ending
    answer = engine.chat(prompt, model=ONE, max_tokens=60, return_token_ids=True, logprobs=True)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] is None
    assert choice["token_ids"] == ids
    assert choice["message"]["content"] == tokenizer.decode(ids[:-1])
    assert answer["usage"]["completion_tokens"] == len(ids)
    assert choice["logprobs"]["content"][-1]["token"] == "<|im_end|>"
    longer = engine.chat(prompt, model=ONE, max_tokens=60, ignore_eos=True)
    assert longer["usage"]["completion_tokens"] == 60


def test_a_stop_string_ends_the_answer_and_never_leaks_into_a_stream(engine):
    text = engine.chat("Hi", max_tokens=40)["choices"][0]["message"]["content"]
    stop = text[7:11]
    assert text.index(stop) == 7
    decoy = stop[:2] + "\0"
    fields = {"max_tokens": 40, "stop": [decoy, stop]}
    choice = engine.chat("Hi", **fields)["choices"][0]
    assert choice["message"]["content"] == text[:7]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "stream": True} | fields
    sent = ""
    for chunk in chunks(engine, "/v1/chat/completions", body):
        sent += chunk["choices"][0]["delta"].get("content", "")
        assert text[:7].startswith(sent)
    assert sent == text[:7]


def test_text_held_back_for_a_stop_string_that_never_comes_is_delivered(engine):
    text = engine.chat("Hi", max_tokens=20)["choices"][0]["message"]["content"]
    held = engine.chat("Hi", max_tokens=20, stop=text[-3:] + "\0never")["choices"][0]
    assert held["message"]["content"] == text
    assert held["finish_reason"] == "length"


def test_a_stop_token_ends_the_answer_without_its_text(engine):
    whole = engine.chat("Hi", max_tokens=12, return_token_ids=True)["choices"][0]
    stop_id = whole["token_ids"][5]
    first = whole["token_ids"].index(stop_id)
    choice = engine.chat("Hi", max_tokens=12, stop_token_ids=[stop_id], return_token_ids=True)["choices"][0]
    assert choice["token_ids"] == whole["token_ids"][: first + 1]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop_id)
    assert whole["message"]["content"].startswith(choice["message"]["content"])


def test_text_parts_are_joined_by_newlines_and_other_parts_refused(engine):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 8}
    in_parts = engine.post("/v1/chat/completions", body).json()
    plain = engine.chat("one\ntwo", max_tokens=8)
    assert in_parts["choices"][0]["message"] == plain["choices"][0]["message"]
    image = [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    body = {"messages": [{"role": "user", "content": image}]}
    assert refusal(engine.post("/v1/chat/completions", body), 400)["param"] == "messages"


def test_the_served_chat_template_is_the_one_that_renders(engine, model, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}=")
    with running_here(model, ["--chat-template", str(template)]) as other:
        answer = other.chat("Hi", max_tokens=10, return_token_ids=True)
    assert answer["usage"]["prompt_tokens"] == len("[Hi]=")
    assert answer["choices"][0]["token_ids"] == generated(model, None, list(b"[Hi]="), 10)
    assert SYSTEM_PROMPT not in template.read_text()
    assert engine.chat("Hi", max_tokens=1)["usage"]["prompt_tokens"] == len(chat_ids(model, "Hi"))


def test_defaults_are_openais(engine):
    completion = engine.post("/v1/completions", {"prompt": "ab", "ignore_eos": True}).json()
    assert completion["usage"] == {"prompt_tokens": 2, "total_tokens": 18, "completion_tokens": 16}
    assert completion["model"] == BASE_NAME
    chat = engine.chat("Hi", ignore_eos=True)["usage"]
    assert chat["total_tokens"] == 256


def test_a_prompt_over_the_context_is_refused_with_the_numbers(engine):
    error = refusal(engine.post("/v1/completions", {"prompt": "x" * 257, "max_tokens": 1}), 400)
    assert "maximum context length is 256 tokens" in error["message"]
    assert "contains 257 input tokens" in error["message"]
    full = refusal(engine.post("/v1/completions", {"prompt": "x" * 256, "max_tokens": 1}), 400)
    assert "contains 256 input tokens, which leaves none for the answer" in full["message"]
    scored = engine.post(
        "/v1/completions", {"prompt": "x" * 256, "max_tokens": 0, "echo": True, "logprobs": 0}
    )
    assert len(scored.json()["choices"][0]["logprobs"]["tokens"]) == 256
    cut = engine.post("/v1/completions", {"prompt": "x" * 250, "max_tokens": 50, "ignore_eos": True}).json()
    assert cut["usage"]["completion_tokens"] == 6


CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "says"),
    [
        ("chat/completions", CHAT | {"model": "nobody"}, 404, "model", "`nobody` does not exist"),
        ("completions", {"prompt": "x", "model": "nobody"}, 404, "model", "`nobody` does not exist"),
        ("chat/completions", CHAT | {"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
        ("chat/completions", CHAT | {"tools": [{"type": "function"}]}, 400, "tools", "Field required"),
        ("chat/completions", CHAT | {"temprature": 0}, 400, "temprature", "not a field"),
        ("chat/completions", CHAT | {"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ("chat/completions", CHAT | {"top_p": 0}, 400, "top_p", "greater than 0"),
        ("chat/completions", CHAT | {"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ("chat/completions", CHAT | {"top_logprobs": 2}, 400, "top_logprobs", "logprobs is true"),
        ("chat/completions", CHAT | {"stream_options": {}}, 400, "stream_options", "stream is true"),
        ("chat/completions", CHAT | {"n": 2, "temperature": 0}, 400, "n", "greedy"),
        ("chat/completions", CHAT | {"n": 1000}, 400, "n", "less than or equal to 16"),
        ("chat/completions", CHAT | {"stop": ""}, 400, "stop", "empty stop string"),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1"),
        ("chat/completions", {"max_tokens": 2}, 400, "messages", "required"),
        ("completions", {"prompt": ""}, 400, "prompt", "at least one token"),
        ("completions", {"prompt": []}, 400, "prompt", "at least one token"),
        ("completions", {"prompt": [[1], []]}, 400, "prompt", "at least one token"),
        ("completions", {"prompt": [258]}, 400, "prompt", "out of vocabulary (258 ids)"),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens", "at least 1"),
        ("completions", {"prompt": "x", "logprobs": 21}, 400, "logprobs", "less than or equal to 20"),
        ("completions", ["prompt"], 400, None, "JSON object"),
        ("nowhere", {}, 404, None, "Not Found"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_by_name(engine, path, body, status, param, says):
    error = refusal(engine.post(f"/v1/{path}", body), status)
    assert error["param"] == param
    assert says in error["message"]


def test_malformed_json_and_wrong_methods_have_openais_error_shape(engine):
    broken = httpx.post(engine.url + "/v1/chat/completions", content=b'{"messages": [')
    assert "not JSON" in refusal(broken, 400)["message"]
    refusal(httpx.get(engine.url + "/v1/chat/completions"), 405)
    huge = httpx.post(engine.url + "/v1/completions", content=b"x" * (17 * 1024 * 1024), timeout=60)
    refusal(huge, 413)


def test_neutral_and_steering_fields_do_not_change_the_answer(engine):
    plain = engine.chat("Hi", max_tokens=8)["choices"]
    extra = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "user": "u",
        "cache_salt": "s",
    }
    extra |= {"response_format": {"type": "text"}, "tools": [], "parallel_tool_calls": True, "best_of": 1}
    added = {
        "no_stop_trim": False,
        "separate_reasoning": True,
        "stream_reasoning": True,
        "include_reasoning": True,
    }
    added |= {"return_hidden_states": False}  # what vllm-router adds to every body
    assert engine.chat("Hi", max_tokens=8, **extra, **added)["choices"] == plain


def test_adapter_names_answer_vllms_status_codes(engine, model, adapter, tmp_path):
    twice = refusal(engine.load(ONE, adapter), 400)
    assert twice["type"] == "InvalidUserInput"
    assert f"'{ONE}' has already been loaded" in twice["message"]
    assert "conflicts with a served base model" in refusal(engine.load(BASE_NAME, adapter), 400)["message"]
    missing = refusal(engine.load("x@000000000000", tmp_path / "none"), 404)
    assert missing["type"] == "NotFoundError"
    assert f"No adapter found for {tmp_path / 'none'}" in missing["message"]
    unnamed = refusal(engine.post("/v1/load_lora_adapter", {"lora_path": str(adapter)}), 400)
    assert "must be provided" in unnamed["message"]
    unknown = refusal(engine.post("/v1/unload_lora_adapter", {"lora_name": "x@000000000000"}), 404)
    assert unknown["message"] == "The lora adapter 'x@000000000000' cannot be found."


def edited(adapter: Path, to: Path, config: dict[str, Any]) -> Path:
    shutil.copytree(adapter, to)
    settings = json.loads((to / "adapter_config.json").read_text()) | config
    (to / "adapter_config.json").write_text(json.dumps(settings))
    return to


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"target_modules": ["q_proj"]}, "unexpected keys"),
        ({"r": 4}, "does not fit this base model"),
        ({"target_modules": ["nothing_here"]}, "does not fit this base model"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused_and_leaves_no_trace(
    engine, model, adapter, tmp_path, config, says
):
    before = (
        engine.chat("Hi", max_tokens=16)["choices"],
        engine.chat("Hi", model=ONE, max_tokens=16)["choices"],
    )
    refused = engine.load("bad@000000000000", edited(adapter, tmp_path / "bad", config))
    assert says in refusal(refused, 400)["message"]
    after = (
        engine.chat("Hi", max_tokens=16)["choices"],
        engine.chat("Hi", model=ONE, max_tokens=16)["choices"],
    )
    assert after == before
    assert "bad@000000000000" not in {card["id"] for card in engine.get("/v1/models")["data"]}


def renamed(adapter: Path, to: Path) -> Path:
    shutil.copytree(adapter, to)
    tensors = load_file(to / "adapter_model.safetensors")
    save_file(
        {key.replace("base_model.model.", "base_model.model.wrapped."): t for key, t in tensors.items()},
        to / "adapter_model.safetensors",
    )
    return to


def test_renamed_key_prefixes_are_refused_with_the_keys_where_vllm_serves_the_base(engine, adapter, tmp_path):
    error = refusal(engine.load("renamed@000000000000", renamed(adapter, tmp_path / "renamed")), 400)
    assert "28 unexpected keys (base_model.model.wrapped.model.layers.0." in error["message"]
    assert "28 missing keys (base_model.model.model.layers.0." in error["message"]


def test_the_first_adapter_refused_leaves_a_plain_model_that_takes_the_next(model, adapter, tmp_path):
    other_base = build_tiny_model(tmp_path / "wide", hidden=128)
    foreign = build_tiny_adapter(other_base, tmp_path / "foreign", seed=1)
    with running_here(model) as fresh:
        before = fresh.chat("Hi", max_tokens=16)["choices"]
        for path in (renamed(adapter, tmp_path / "renamed"), foreign):
            refusal(fresh.load("bad@000000000000", path), 400)
            assert fresh.chat("Hi", max_tokens=16)["choices"] == before
        assert fresh.load(ONE, adapter).status_code == 200
        got = fresh.chat("Hi", model=ONE, max_tokens=16, return_token_ids=True)["choices"][0]["token_ids"]
        assert got == generated(model, adapter, chat_ids(model, "Hi"), 16)
        assert fresh.post("/v1/unload_lora_adapter", {"lora_name": ONE}).status_code == 200
        assert fresh.chat("Hi", max_tokens=16)["choices"] == before
