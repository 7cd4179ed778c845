"""Tiny random models and adapters that all tests share: real files, real loaders, milliseconds a forward.

The tokenizer is byte-level (256 bytes, no merges), so any text encodes and token counts equal UTF-8 bytes
plus specials. Weights are random but deterministic in `seed`. Output rows of bytes that are not printable
ASCII are damped, so that greedy text is mostly readable and now and then leaves ASCII.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SYSTEM_PROMPT = "You are a tiny assistant."

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
IM_START_ID, IM_END_ID = 256, 257
HEAD_DIM = 32  # the smallest head vLLM's CPU attention accepts


def build_tiny_model(
    dir: Path | str, seed: int = 0, hidden: int = 64, layers: int = 2, max_len: int = 512
) -> Path:
    """Write a random Llama with its tokenizer to `dir` (created) and return it.

    `hidden` is a multiple of 32; grouped-query attention with one KV head for two query heads when that
    divides. Files: config, generation_config, model.safetensors (fp32), tokenizer, chat template.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    path = Path(dir)
    path.mkdir(parents=True, exist_ok=True)
    n_heads = hidden // HEAD_DIM
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_heads // 2 if n_heads % 2 == 0 else n_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=max_len,
        bos_token_id=IM_START_ID,
        eos_token_id=IM_END_ID,
        pad_token_id=IM_END_ID,
        tie_word_embeddings=False,
        initializer_range=0.2,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            rows = model.lm_head.weight
            damped = [i for i in range(256) if not 32 <= i < 127]
            rows[damped] *= 0.7
            rows[IM_START_ID] *= 0.1
    model.generation_config = GenerationConfig(
        bos_token_id=IM_START_ID, eos_token_id=IM_END_ID, pad_token_id=IM_END_ID
    )
    model.save_pretrained(path)
    tokenizer = build_tokenizer(max_len)
    tokenizer.save_pretrained(path)
    return path


def build_tokenizer(max_len: int) -> Any:
    """Return the byte-level tokenizer with ChatML specials; id = byte value for 0..255."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab=_byte_vocab(), merges=[], fuse_unk=False))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (IM_START, IM_END)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=IM_START,
        eos_token=IM_END,
        pad_token=IM_END,
        model_max_length=max_len,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte_vocab() -> dict[str, int]:
    """GPT-2's byte-to-printable-character table, as {character: byte value}."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(shifted)}


def build_tiny_adapter(base_dir: Path | str, dir: Path | str, seed: int = 1, scale: float = 1.0) -> Path:
    """Write a PEFT LoRA adapter (r=8, all linear layers, random non-zero B) for the model in `base_dir`.

    `scale` multiplies B: 1.0 changes most greedy answers, 0.0 is an adapter without any effect.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = Path(dir)
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, local_files_only=True)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "lora_A" in name or "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
            if "lora_B" in name:
                weight.mul_(scale)
    model.save_pretrained(path)
    return path
