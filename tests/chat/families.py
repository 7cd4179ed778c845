"""Five families of chat templates with tokenizers of their kind, written for these tests: each has the habits of its
family that a loss mask can stumble over, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmops.records import PromptContract
from tests.tiny import CHAT_TEMPLATE, _byte_vocab

CHATML = CHAT_TEMPLATE

# Headers, bos in the template, a date line, stripped content, tools in the first question, one call a turn.
LLAMA3 = r"""
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday is 1 Jan 2025.\n\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
    {%- if m.tool_calls is defined %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time, please') }}{% endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}<|eot_id|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
        {%- if loop.first and tools %}
            {{- 'You may call:\n' }}
            {%- for tool in tools %}{{- tool | tojson(indent=1) + '\n' }}{% endfor %}
        {%- endif %}
        {{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""

# Thinking: an empty block before a last answer without any; left out of turns before the last question. Results of
# tools are the user's turn.
QWEN3 = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
    {{- 'Tools:' }}
    {%- for tool in tools %}{{- '\n' + tool | tojson }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set seen = namespace(question=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set seen.question = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
        {%- if loop.index0 > seen.question and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + m.content.lstrip('\n') }}
        {%- else %}
            {{- m.content }}
        {%- endif %}
        {%- for call in m.tool_calls or [] %}
            {%- if not loop.first or m.content %}{{- '\n' }}{% endif %}
            {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""

# Role `model`, no system role (it joins the first question), stripped content, strict order.
GEMMA3 = r"""
{{- bos_token }}
{%- set first = '' %}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}
    {{- m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}
"""

# Nothing opens an answer, a space leads it, tools stand before the last question only, ids of calls have nine letters.
MISTRAL = r"""
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- set seen = namespace(question=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set seen.question = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- if tools and loop.index0 == seen.question %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (system if loop.first else '') + m.content + '[/INST]' }}
    {%- elif m.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception('ids of calls have nine letters') }}
            {%- endif %}
            {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
            {{- ', "id": "' + call.id + '"}' + ('' if loop.last else ', ') }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content | tojson + ', "call_id": "' + m.tool_call_id + '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- ' ' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""


@dataclass(frozen=True)
class Family:
    """A template, the special tokens of its tokenizer, and which of them begin and end what."""

    name: str
    template: str
    specials: tuple[str, ...]
    bos: str
    ends: tuple[str, ...]
    sentencepiece: bool = False
    splits_as_gpt2: bool = False


FAMILIES = (
    Family("chatml", CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_start|>", ("<|im_end|>",)),
    Family(
        "llama3",
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        ("<|end_of_text|>", "<|eot_id|>"),
    ),
    Family(
        "qwen3",
        QWEN3,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
        "<|endoftext|>",
        ("<|im_end|>", "<|endoftext|>"),
    ),
    Family(
        "gemma3",
        GEMMA3,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        ("<eos>", "<end_of_turn>"),
        sentencepiece=True,
    ),
    Family(
        "mistral",
        MISTRAL,
        (
            "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
        ),
        "<s>",
        ("</s>",),
        sentencepiece=True,
    ),
)  # fmt: skip


def build(family: Family) -> tuple[Any, PromptContract]:
    """The family's tokenizer and prompt contract."""
    from transformers import PreTrainedTokenizerFast

    core = _sentencepiece() if family.sentencepiece else _byte_level(family.splits_as_gpt2)
    core.add_special_tokens(_added(family.specials))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=family.bos,
        eos_token=family.ends[0],
        clean_up_tokenization_spaces=True,  # as Llama 3's own configuration has it
    )
    ends = tuple(tokenizer.convert_tokens_to_ids(end) for end in family.ends)
    return tokenizer, PromptContract(family.template, "0" * 64, ends)


def _added(names: tuple[str, ...]) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(name, special=True, normalized=False) for name in names]


LINE_ENDS_STAY = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen divide a text into words: line ends are a word of their own."""


def _byte_level(as_gpt2: bool) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = _byte_vocab()
    newline, space = "Ċ", "Ġ"
    merged = {newline + newline: 256, space + space: 257}  # as real vocabularies do, over turns' borders too
    core = Tokenizer(models.BPE(vocab=vocab | merged, merges=[(newline, newline), (space, space)]))
    split = pre_tokenizers.Split(Regex(LINE_ENDS_STAY), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=as_gpt2)
    core.pre_tokenizer = to_bytes if as_gpt2 else pre_tokenizers.Sequence([split, to_bytes])
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece() -> Any:
    """Characters with byte fallback, spaces as U+2581, and a decoder that drops the first space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    characters = ["▁", *map(chr, range(33, 127)), "\n", "é"]
    names = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *characters]
    core = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)}, merges=[], unk_token="<unk>", byte_fallback=True
        )
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core
