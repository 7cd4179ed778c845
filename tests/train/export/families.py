"""Tiny models of the families that are written as GGUF, with byte-level BPE tokenizers that really merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.tiny import CHAT_TEMPLATE, IM_END, IM_START

N_TOKENS = 400
TEXT = (
    "the cat sat on the mat and the dog sat on the log; 12 dogs, 345 cats and 6789 mice don't care",
    "def total(items):\n    return sum(item.price for item in items)\n",
    "La bibliothèque ferme à six heures; naïve café, über straße, 東京",
)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3.replace("{1,3}", "")), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


def build_family(folder: Path, kind: str, split: str, **config: Any) -> Path:
    """A random model of `model_type` kind, grouped-query attention, whose tokenizer splits text as `split` names."""
    tokenizer = _tokenizer(split)
    shape = {
        "vocab_size": N_TOKENS + 6, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False, "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**shape | config), dtype=torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(("bias", "norm.weight")):  # which start as zeros and ones
                    weight.add_(torch.randn(weight.shape) * 0.2)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(split: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = SPLITS[split]
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=N_TOKENS, initial_alphabet=sorted(alphabet), show_progress=False)
    core.train_from_iterator(TEXT * 3, trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (IM_START, IM_END)])
    core.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=IM_START, eos_token=IM_END, pad_token=IM_END, model_max_length=256
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def add_post_processor(folder: Path) -> None:
    """Make the tokenizer in a folder put its first token before every text, as Llama 3's does."""
    path = folder / "tokenizer.json"
    core = json.loads(path.read_text())
    special = {"id": IM_START, "ids": [core["added_tokens"][0]["id"]], "tokens": [IM_START]}
    core["post_processor"] = {
        "type": "TemplateProcessing", "special_tokens": {IM_START: special},
        "single": [{"SpecialToken": {"id": IM_START, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    }  # fmt: skip
    path.write_text(json.dumps(core))
