"""A byte-level BPE tokenizer as GGUF's keys: tokens, types, merges, how text is split, special tokens, chat template.

Reads the base's tokenizer.json. Only ways of splitting text that llama.cpp knows by name are written; any other is
refused, for a reader would split otherwise and never say so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmops.errors import BadRequest
from llmops.records import PromptContract
from llmops.schema import JsonDict

if TYPE_CHECKING:
    from gguf import GGUFWriter

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {_LLAMA_3: "llama-bpe", _QWEN_2: "qwen2"}
READ_BY_TRANSFORMERS = ("gpt-2", "llama-bpe", "qwen2")
"""Ways of splitting that transformers 5.19 reads back from a file; llama.cpp reads `smollm` too."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in GGUF's terms: `tokens[i]` and `types[i]` are of token id i."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    split: str
    special_ids: dict[str, int]  # bos, eos, unk, pad
    adds_bos: bool
    chat_template: str

    def write(self, writer: GGUFWriter, end_ids: tuple[int, ...]) -> None:
        """Put the vocabulary into a file's header; `end_ids` are the contract's end tokens, the first counts as EOS."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        writer.add_token_merges(list(self.merges))
        ids = self.special_ids | {"eos": end_ids[0]}
        setters = {
            "bos": writer.add_bos_token_id,
            "eos": writer.add_eos_token_id,
            "unk": writer.add_unk_token_id,
            "pad": writer.add_pad_token_id,
        }
        for name, set_id in setters.items():
            if name in ids:
                set_id(ids[name])
        if len(end_ids) > 1:
            writer.add_eot_token_id(end_ids[1])
        writer.add_add_bos_token(self.adds_bos)
        writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, n_rows: int, contract: PromptContract) -> Vocabulary:
    """The vocabulary of a model's folder.

    Args:
        folder: with tokenizer.json and tokenizer_config.json.
        n_rows: rows of the model's embedding; ids over the last token are padded with tokens that are never used.
        contract: the chat template is its.

    Raises:
        BadRequest: the tokenizer is none that GGUF readers would read alike.
    """
    from gguf import TokenType

    core = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, where = core["model"], f"{folder}/tokenizer.json"
    if model.get("type") != "BPE" or not model.get("merges") or model.get("byte_fallback"):
        raise BadRequest(
            f"{where}: is {model.get('type')} {'with byte fallback' if model.get('byte_fallback') else ''}"
            f"{'' if model.get('merges') else 'without merges'}, not byte-level BPE; only that is written as GGUF"
        )
    split, normalizer = _split(core.get("pre_tokenizer"), where), (core.get("normalizer") or {}).get("type")
    if normalizer and (normalizer, split) != (
        "NFC",
        "qwen2",
    ):  # Qwen's is left out by llama.cpp, which knows it
        raise BadRequest(f"{where}: has a normalizer ({normalizer}), which GGUF cannot carry")
    by_id = {int(i): str(token) for token, i in model["vocab"].items()}
    types = dict.fromkeys(by_id, int(TokenType.NORMAL))
    for added in core.get("added_tokens", ()):
        by_id[added["id"]] = added["content"]
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if by_id and max(by_id) >= n_rows:
        raise BadRequest(
            f"{where}: has token {max(by_id)}, the model {n_rows} rows; save tokenizer and model again"
        )
    ids = range(n_rows)
    return Vocabulary(
        tokens=tuple(by_id.get(i, f"[PAD{i}]") for i in ids),
        types=tuple(types.get(i, int(TokenType.UNUSED)) for i in ids),
        merges=tuple(m if isinstance(m, str) else " ".join(m) for m in model["merges"]),
        split=split,
        special_ids=_special_ids(folder, {token: i for i, token in by_id.items()}),
        adds_bos=_adds_bos(core),
        chat_template=contract.chat_template,
    )


def _split(pre: Any, where: str) -> str:
    """llama.cpp's name for how the tokenizer splits text before merging.

    Raises:
        BadRequest: it has none.
    """
    parts = pre.get("pretokenizers", [pre]) if isinstance(pre, dict) else []
    kinds = [part.get("type") for part in parts]
    if kinds and kinds[-1] == "ByteLevel" and not parts[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
            return "gpt-2"
        if (
            kinds == ["Digits", "ByteLevel"]
            and parts[0].get("individual_digits")
            and parts[1].get("use_regex", True)
        ):
            return "smollm"
        pattern = parts[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
        if pattern in _SPLITS and not parts[1].get("use_regex", True):
            return _SPLITS[pattern]
    raise BadRequest(
        f"{where}: splits text in a way that has no name in GGUF ({', '.join(map(str, kinds)) or 'none'}); known are "
        "those of GPT-2, SmolLM, Llama 3 and Qwen 2"
    )


def _special_ids(folder: Path, ids: dict[str, int]) -> dict[str, int]:
    path = folder / "tokenizer_config.json"
    config: JsonDict = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = {}
    for name in ("bos", "unk", "pad"):
        token = config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            found[name] = ids[text]
    return found


def _adds_bos(core: JsonDict) -> bool:
    """Whether the tokenizer puts its first token before any text: a post-processor of two parts or more says so."""
    post = core.get("post_processor") or {}
    parts = post.get("processors", [post])
    return any("SpecialToken" in piece for part in parts for piece in part.get("single", ())[:1])
