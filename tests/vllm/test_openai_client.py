"""The official openai client against vLLM as we start it; the oracle is greedy `generate` of transformers and PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from llmops.engines.process import EngineProcess
from llmops.registry.bases import Base

MESSAGES: list[Any] = [{"role": "user", "content": "Name three colours of the rainbow."}]
N_TOKENS = 20


@pytest.fixture(scope="module")
def openai_client(engine: EngineProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module", params=["base", "docs"])
def served(request: pytest.FixtureRequest, base: Base, folders: dict[str, Path]) -> tuple[str, Any, Any]:
    """A served name, its model in transformers, and the tokenizer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32, local_files_only=True)
    name = base.model_name
    if request.param != "base":
        model, name = PeftModel.from_pretrained(model, folders[request.param]), request.param
    return name, model.eval(), AutoTokenizer.from_pretrained(base.path, local_files_only=True)


def generated(model: Any, tokenizer: Any, ids: list[int]) -> str:
    import torch

    out = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=N_TOKENS, do_sample=False, repetition_penalty=1.0, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))


def test_chat_is_the_greedy_answer_of_the_named_weights(
    openai_client: OpenAI, served: tuple[str, Any, Any]
) -> None:
    name, model, tokenizer = served
    answer = openai_client.chat.completions.create(
        model=name, messages=MESSAGES, max_tokens=N_TOKENS, temperature=0
    )
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert answer.model == name
    assert answer.choices[0].message.content == generated(model, tokenizer, ids)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)


def test_the_joined_stream_equals_the_whole_answer(
    openai_client: OpenAI, served: tuple[str, Any, Any]
) -> None:
    ask: dict[str, Any] = {"model": served[0], "messages": MESSAGES, "max_tokens": N_TOKENS, "temperature": 0}
    whole = openai_client.chat.completions.create(**ask)
    chunks = list(openai_client.chat.completions.create(**ask, stream=True))
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )
    assert len(chunks) > 2
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completions_continue_the_text(openai_client: OpenAI, served: tuple[str, Any, Any]) -> None:
    name, model, tokenizer = served
    prompt = "The capital of France is"
    ids = tokenizer(prompt)["input_ids"]
    answer = openai_client.completions.create(
        model=name, prompt=prompt, max_tokens=N_TOKENS, temperature=0, logprobs=1
    )
    assert answer.choices[0].text == generated(model, tokenizer, ids)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == N_TOKENS


def test_models_lists_base_and_adapters(openai_client: OpenAI, base: Base, folders: dict[str, Path]) -> None:
    assert [model.id for model in openai_client.models.list()] == [base.model_name, *folders]
