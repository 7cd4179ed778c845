"""The embedded engine: transformers and PEFT behind the HTTP surface of `vllm serve`, as a child process.

`python -m llmops.engines.embedded --help` says how it starts. One base model, many LoRA adapters mixed in one
continuously refilled batch, on loopback only.
"""
