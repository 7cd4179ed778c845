"""The prompt contract: how a conversation becomes token ids, which of them are trained on, and how both are hashed.

One contract is made from a base model's files, carried by every adapter trained on it, and compared by train, eval and
serve. Reading a contract needs no transformers; encoding needs the tokenizer of the base.
"""

from llmops.chat.bulk import encode_many, in_chunks
from llmops.chat.contract import CONTRACT_FILE, read_contract, require_same_contract, write_contract
from llmops.chat.encoder import Encoder, encode, encode_all, encode_prompt, render
from llmops.chat.masks import Encoded
from llmops.chat.template import Tokenizer, with_system

__all__ = [
    "CONTRACT_FILE",
    "Encoded",
    "Encoder",
    "Tokenizer",
    "encode",
    "encode_all",
    "encode_many",
    "encode_prompt",
    "in_chunks",
    "read_contract",
    "render",
    "require_same_contract",
    "with_system",
    "write_contract",
]
