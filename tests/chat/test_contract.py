from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops.chat import encode, encode_prompt, read_contract, require_same_contract, with_system
from llmops.errors import ConfigError, DataError, InvalidEvidence
from llmops.records import Message, PromptContract
from tests.tiny import IM_END, IM_END_ID, build_tiny_model

U, A = "user", "assistant"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PromptContract]:
    from transformers import AutoTokenizer

    folder = build_tiny_model(tmp_path_factory.mktemp("chat"))
    return AutoTokenizer.from_pretrained(folder), read_contract(folder)


def _trained_text(tokenizer: Any, ids: tuple[int, ...], mask: tuple[int, ...]) -> str:
    return str(tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]))


@settings(max_examples=60, deadline=None)
@given(answers=st.lists(st.text(min_size=1).filter(lambda s: "<|" not in s), min_size=1, max_size=3))
def test_mask_ones_decode_to_exactly_the_answers_and_their_end_tokens(
    parts: tuple[Any, PromptContract], answers: list[str]
) -> None:
    tokenizer, contract = parts
    messages = [m for a in answers for m in (Message(U, "what?"), Message(A, a))]
    encoded = encode(tokenizer, contract, messages)
    assert _trained_text(tokenizer, encoded.input_ids, encoded.loss_mask) == "".join(
        a + IM_END for a in answers
    )
    assert encoded.n_supervised == sum(len(a.encode()) + 1 for a in answers)


def test_encoding_equals_the_tokenizers_own_chat_template(parts: tuple[Any, PromptContract]) -> None:
    tokenizer, contract = parts
    turns = [{"role": U, "content": "hi"}, {"role": A, "content": "yo"}]
    messages = [Message(**t) for t in turns]
    assert (
        list(encode(tokenizer, contract, messages).input_ids)
        == tokenizer.apply_chat_template(turns)["input_ids"]
    )
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    assert list(encode_prompt(tokenizer, contract, messages[:1])) == prompt


def test_training_prompt_is_the_start_of_the_training_text(parts: tuple[Any, PromptContract]) -> None:
    tokenizer, contract = parts
    messages = [Message(U, "hi"), Message(A, "yo")]
    encoded, prompt = encode(tokenizer, contract, messages), encode_prompt(tokenizer, contract, messages[:1])
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.loss_mask[: len(prompt)] == (0,) * len(prompt)


def test_default_system_prompt_stands_before_conversations_without_one(
    parts: tuple[Any, PromptContract],
) -> None:
    tokenizer, contract = parts
    brief = replace(contract, system="Be brief.")
    text = tokenizer.decode(encode_prompt(tokenizer, brief, [Message(U, "hi")]))
    assert (
        text
        == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    own = (Message("system", "Mine."), Message(U, "hi"))
    assert with_system(own, "Be brief.") == own


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endfor %}",
            "does not render the answer",
        ),
        ("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", "no end token"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_template_without_an_exact_mask_is_refused(
    parts: tuple[Any, PromptContract], template: str, message: str
) -> None:
    tokenizer, contract = parts
    generation = "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    with pytest.raises(DataError, match=message):
        encode(
            tokenizer,
            replace(contract, chat_template=template + generation),
            [Message(U, "q"), Message(A, " padded ")],
        )


def test_conversation_without_an_answer_is_refused(parts: tuple[Any, PromptContract]) -> None:
    with pytest.raises(DataError, match="no assistant turn"):
        encode(*parts, [Message(U, "q")])


def test_contract_reads_the_same_files_to_the_same_digest(
    parts: tuple[Any, PromptContract], tiny_model: Path
) -> None:
    assert read_contract(tiny_model).digest() == parts[1].digest()
    assert parts[1].eos_token_ids == (IM_END_ID,)


@pytest.mark.parametrize("field", ["chat_template", "tokenizer_sha256", "eos_token_ids"])
def test_adapter_with_another_contract_than_its_base_is_refused(
    parts: tuple[Any, PromptContract], field: str
) -> None:
    contract = parts[1]
    other = replace(contract, **{field: (9,) if field == "eos_token_ids" else "other"})
    with pytest.raises(InvalidEvidence, match="docs@1: prompt contract"):
        require_same_contract(other, contract, "docs@1")
    require_same_contract(replace(contract, system="Be brief."), contract, "docs@1")


def test_model_folder_without_a_template_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="no single chat template"):
        read_contract(tmp_path)
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        read_contract(tmp_path / "nowhere")
