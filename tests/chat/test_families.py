"""Loss masks of the five template families: exact, or refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops.chat import Encoded, encode, encode_all, encode_prompt
from llmops.errors import RowRefused
from llmops.records import Message, PromptContract, ToolCall
from llmops.schema import canonical_json
from tests.chat.families import FAMILIES, Family, build

U, A = "user", "assistant"
ENDS = {family.name: "<|im_end|>" for family in FAMILIES} | {
    "llama3": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "mistral": "</s>",
}
BUILT = {family.name: build(family) for family in FAMILIES}
WITH_TOOLS = ("llama3", "qwen3", "mistral")

TWO_TURNS = (
    Message("system", "Be brief."),
    Message(U, "Who?"),
    Message(A, "Me, the café.  Yes ?\n\n- 世界 😀"),
    Message(U, "And?"),
    Message(A, "def f(x):\n    return x  # done"),
)
CALL = ToolCall("weather", '{"town": "Lima", "days": 2}', "abcdefghi")
TOOL_LOOP = (
    Message(U, "Weather in Lima?"),
    Message(A, "", tool_calls=(CALL,)),
    Message("tool", '{"sky": "grey"}', tool_call_id="abcdefghi", name="weather"),
    Message(A, "Grey skies."),
)
TOOLS = canonical_json(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Tells the sky.",
                "parameters": {"type": "object"},
            },
        }
    ]
).decode()


def _trained(name: str, encoded: Encoded) -> list[str]:
    """The text of every run of trained tokens."""
    tokenizer, runs, last = BUILT[name][0], [], 0
    for token, scored in zip(encoded.input_ids, encoded.loss_mask, strict=True):
        if scored and not last:
            runs.append([])
        if scored:
            runs[-1].append(token)
        last = scored
    # After a token of another kind, so that decoders which strip a text's first space do not.
    anchor = encoded.input_ids[0]
    head = tokenizer.decode([anchor], clean_up_tokenization_spaces=False)
    return [tokenizer.decode([anchor, *run], clean_up_tokenization_spaces=False)[len(head) :] for run in runs]


def _all_trained(name: str, messages: Sequence[Message], tools: str | None = None) -> list[str]:
    return [run for one in encode_all(*BUILT[name], messages, tools) for run in _trained(name, one)]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma3"])
def test_every_answer_of_a_conversation_is_trained_with_its_end_token_and_nothing_else(name: str) -> None:
    encoded = encode(*BUILT[name], TWO_TURNS)
    assert _trained(name, encoded) == [m.content + ENDS[name] for m in TWO_TURNS if m.role == A]
    assert encoded.context_turns == ()
    assert len(encode_all(*BUILT[name], TWO_TURNS)) == 1


def test_mistrals_leading_space_is_part_of_what_the_model_writes() -> None:
    assert _trained("mistral", encode(*BUILT["mistral"], TWO_TURNS)) == [
        f" {m.content}</s>" for m in TWO_TURNS if m.role == A
    ]


def test_qwen3_trains_each_answer_after_the_prompt_that_is_served_with_its_empty_thinking() -> None:
    """The template drops the empty block from the first answer once there is a second: two sequences."""
    whole, first = encode_all(*BUILT["qwen3"], TWO_TURNS)
    assert (whole.context_turns, first.context_turns) == ((2,), ())
    lead = "<think>\n\n</think>\n\n"
    assert _trained("qwen3", whole) == [lead + TWO_TURNS[4].content + "<|im_end|>"]
    assert _trained("qwen3", first) == [lead + TWO_TURNS[2].content + "<|im_end|>"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_trained_tokens_follow_exactly_the_prompt_that_a_server_sends(family: Family) -> None:
    """Every sequence begins with the prompt of its first trained turn, as it is encoded alone."""
    for encoded in encode_all(*BUILT[family.name], TWO_TURNS):
        first = encoded.loss_mask.index(1)
        turn = next(
            i
            for i, m in enumerate(TWO_TURNS)
            if m.role == A and encode_prompt(*BUILT[family.name], TWO_TURNS[:i]) == encoded.input_ids[:first]
        )
        assert turn not in encoded.context_turns


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_ids_are_those_of_the_tokenizers_own_chat_template(family: Family) -> None:
    tokenizer, contract = BUILT[family.name]
    turns = [m.to_turn() for m in TWO_TURNS]
    ids = tokenizer.apply_chat_template(turns, chat_template=contract.chat_template)["input_ids"]
    assert list(encode(tokenizer, contract, TWO_TURNS).input_ids) == ids


@settings(max_examples=15, deadline=None)
@given(
    answers=st.lists(
        st.text(min_size=1, alphabet=st.characters(blacklist_categories=("Cs",))).filter(
            lambda s: s.strip() == s and not set(s) & set("<[▁")
        ),
        min_size=1,
        max_size=3,
    )
)
@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_any_answer_is_trained_once_or_the_row_is_refused(name: str, answers: list[str]) -> None:
    messages = [m for a in answers for m in (Message(U, "what?"), Message(A, a))]
    lead = {"qwen3": "<think>\n\n</think>\n\n", "mistral": " "}.get(name, "")
    assert sorted(_all_trained(name, messages)) == sorted(lead + a + ENDS[name] for a in answers)


@pytest.mark.parametrize(
    ("name", "call", "answer"),
    [
        ("llama3", '{"name": "weather", "parameters": {"town": "Lima", "days": 2}}', "Grey skies."),
        (
            "qwen3",
            '<think>\n\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"town": "Lima", "days": 2}}\n'
            "</tool_call>",
            "<think>\n\n</think>\n\nGrey skies.",
        ),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"town": "Lima", "days": 2}, "id": "abcdefghi"}]',
            " Grey skies.",
        ),
    ],
)
def test_calls_are_trained_as_the_template_writes_them_and_results_are_not(
    name: str, call: str, answer: str
) -> None:
    assert sorted(_all_trained(name, TOOL_LOOP, TOOLS)) == sorted([call + ENDS[name], answer + ENDS[name]])


def test_results_of_tools_are_read() -> None:
    for name in WITH_TOOLS:
        whole = encode(*BUILT[name], TOOL_LOOP, TOOLS)
        assert "grey" in BUILT[name][0].decode(whole.input_ids)


def test_tools_reach_the_template_in_the_order_that_servers_send_them_in() -> None:
    ids = encode_prompt(*BUILT["qwen3"], TOOL_LOOP[:1], TOOLS)
    wanted = (
        '{"type": "function", "function": {"name": "weather", "description": "Tells the sky.", "parameters": '
    )
    assert wanted in BUILT["qwen3"][0].decode(ids)
    assert "weather" not in BUILT["qwen3"][0].decode(encode_prompt(*BUILT["qwen3"], TOOL_LOOP[:1]))


def test_mistral_moves_the_tools_so_earlier_turns_get_sequences_of_their_own() -> None:
    more = (*TOOL_LOOP, Message(U, "And tomorrow?"), Message(A, "Sun."))
    whole, *rest = encode_all(*BUILT["mistral"], more, TOOLS)
    assert whole.context_turns == (1, 3)
    assert _trained("mistral", whole) == [" Sun.</s>"]
    assert [len(_trained("mistral", one)) for one in rest] == [1, 1]
    text = BUILT["mistral"][0].decode(rest[0].input_ids)
    assert text.startswith("<s>[AVAILABLE_TOOLS]")
    assert encode(*BUILT["mistral"], more).context_turns == (), "without tools nothing moves"


THOUGHT = (
    Message(U, "2 + 2?"),
    Message(A, "4", reasoning="Two and two."),
    Message(U, "3 + 3?"),
    Message(A, "6", reasoning="Three and three."),
)


def test_reasoning_is_trained_where_the_template_writes_it() -> None:
    whole, first = encode_all(*BUILT["qwen3"], THOUGHT)
    assert _trained("qwen3", whole) == ["<think>\nThree and three.\n</think>\n\n6<|im_end|>"]
    assert _trained("qwen3", first) == ["<think>\nTwo and two.\n</think>\n\n4<|im_end|>"]
    assert whole.unrendered == ()
    read = BUILT["qwen3"][0].decode(whole.input_ids)
    assert "Two and two" not in read, "the earlier thought is gone from the later prompt, as when serving"


def test_reasoning_that_the_template_drops_is_named_and_the_answer_still_trained() -> None:
    encoded = encode(*BUILT["chatml"], THOUGHT)
    assert _trained("chatml", encoded) == ["4<|im_end|>", "6<|im_end|>"]
    assert encoded.unrendered == (1, 3)


def test_reasoning_between_calls_stays_in_one_sequence() -> None:
    messages = (
        TOOL_LOOP[0],
        replace(TOOL_LOOP[1], reasoning="Ask the sky."),
        TOOL_LOOP[2],
        replace(TOOL_LOOP[3], reasoning="It is grey."),
    )
    (whole,) = encode_all(*BUILT["qwen3"], messages, TOOLS)
    call, answer = _trained("qwen3", whole)
    assert call.startswith("<think>\nAsk the sky.\n</think>\n\n<tool_call>")
    assert answer == "<think>\nIt is grey.\n</think>\n\nGrey skies.<|im_end|>"


def _refused(name: str, messages: Sequence[Message], tools: str | None = None) -> RowRefused:
    with pytest.raises(RowRefused) as caught:
        encode(*BUILT[name], messages, tools)
    return caught.value


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_answer_that_a_template_strips_is_refused(name: str) -> None:
    error = _refused(name, [Message(U, "q"), Message(A, " padded ")])
    assert error.kind == "answer changed"
    assert "' padded '" in str(error)


@pytest.mark.parametrize(
    ("name", "messages", "kind", "words"),
    [
        ("gemma3", (Message(U, "q"), Message(U, "q"), Message(A, "a")), "template refuses", "roles must alternate"),
        ("llama3", (TOOL_LOOP[0], replace(TOOL_LOOP[1], tool_calls=(CALL, CALL))), "template refuses", "one call"),
        ("mistral", (TOOL_LOOP[0], replace(TOOL_LOOP[1], tool_calls=(replace(CALL, id="x"),))), "template refuses",
         "nine letters"),
        ("chatml", TOOL_LOOP, "tool call not rendered", "does not write the call of weather"),
        ("gemma3", (Message(U, "q"), Message(A, "", tool_calls=(CALL,))), "tool call not rendered", "weather"),
        ("qwen3", (TOOL_LOOP[0], replace(TOOL_LOOP[1], tool_calls=(replace(CALL, arguments="{town"),))),
         "malformed tool call", "not JSON"),
        ("qwen3", (TOOL_LOOP[0], replace(TOOL_LOOP[1], tool_calls=(replace(CALL, arguments="[1]"),))),
         "malformed tool call", "list, not an object"),
        ("chatml", (Message(U, "q"), Message(A, "one<|im_end|>two")), "end token inside", "after 'one'"),
        ("chatml", (Message(U, "q"), Message(A, "")), "no supervised token", "empty"),
        ("chatml", (Message(U, "q"),), "no supervised token", "no assistant turn"),
        ("qwen3", (Message(U, "q"), Message(A, "a"), Message(U, "q")), "no supervised token", "end the conversation"),
    ],
)  # fmt: skip
def test_row_without_an_exact_mask_is_refused_with_its_kind_and_reason(
    name: str, messages: tuple[Message, ...], kind: str, words: str
) -> None:
    error = _refused(name, messages, TOOLS if messages[-1].tool_calls else None)
    assert (error.kind, words in str(error)) == (kind, True), str(error)


def test_answer_that_fuses_with_the_prompt_is_refused() -> None:
    """The header's last newline and the answer's first become one token, which no mask can divide."""
    assert _refused("llama3", [Message(U, "q"), Message(A, "\nx")]).kind == "answer changed"
    assert _refused("chatml", [Message(U, "q"), Message(A, "\nx")]).kind == "undecodable"


def test_prompt_with_other_tokens_than_alone_is_refused() -> None:
    """GPT-2's rule gives the last of two line ends to the word after it, so the served header is another token."""
    tokenizer, contract = build(replace(FAMILIES[1], splits_as_gpt2=True))
    with pytest.raises(RowRefused, match="other tokens with the answer than alone") as caught:
        encode(tokenizer, contract, TWO_TURNS)
    assert caught.value.kind == "fused tokens"


def test_template_whose_prompt_changes_once_it_is_answered_is_refused() -> None:
    """As in templates that put the system prompt before a question only while it is the last turn."""
    tokenizer, contract = BUILT["mistral"]
    moved = contract.chat_template.replace("system if loop.first", "system if loop.last")
    with pytest.raises(RowRefused, match=r"otherwise once it is answered .'Be brief") as caught:
        encode(tokenizer, replace(contract, chat_template=moved), TWO_TURNS[:3])
    assert caught.value.kind == "prompt changed"


def _stock(name: str) -> str:
    """A model's own template, as the installed TRL ships it for comparison."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "stock"), [("llama3", "llama3"), ("gemma3", "gemma3")])
def test_masks_equal_those_of_trls_marked_templates(name: str, stock: str) -> None:
    """TRL marks the assistant's tokens in variants of the stock templates; it also trains what follows an end token."""
    tokenizer, contract = BUILT[name]
    stock_contract = replace(contract, chat_template=_stock(stock))
    encoded = encode(tokenizer, stock_contract, TWO_TURNS)
    theirs = tokenizer.apply_chat_template(
        [m.to_turn() for m in TWO_TURNS],
        chat_template=_stock(f"{stock}_training"),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    assert list(encoded.input_ids) == theirs["input_ids"]
    after_end = [
        t > 0 and encoded.input_ids[t - 1] in contract.eos_token_ids and encoded.loss_mask[t - 1] == 1
        for t in range(len(encoded.input_ids))
    ]
    cut = [0 if after else m for m, after in zip(theirs["assistant_masks"], after_end, strict=True)]
    assert list(encoded.loss_mask) == cut


@pytest.mark.parametrize("stock", ["qwen3", "llama3_1"])
def test_stock_templates_give_the_masks_of_the_families_written_for_these_tests(stock: str) -> None:
    name = "qwen3" if stock == "qwen3" else "llama3"
    tokenizer, contract = BUILT[name]
    real: tuple[Any, PromptContract] = (tokenizer, replace(contract, chat_template=_stock(stock)))
    for messages, tools in ((TWO_TURNS, None), (TOOL_LOOP, TOOLS), (THOUGHT, None)):
        runs = [r for one in encode_all(*real, messages, tools) for r in _trained(name, one)]
        assert runs == _all_trained(name, messages, tools)
