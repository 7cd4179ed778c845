"""Start the embedded engine: `python -m llmops.engines.embedded --model DIR --served-model-name NAME`.

Prints one line with its address when it answers. SIGTERM or SIGINT: no new requests, running ones finish (at
most --shutdown-timeout seconds), exit 0. What keeps it from starting is one line on stderr and exit code 5.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmops.errors import BadRequest, EngineFailed, LlmopsError

if TYPE_CHECKING:
    from llmops.engines.embedded.model import LanguageModel

LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULTS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that spin at a barrier slow each other down many times over when other processes want the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN keeps a kernel, 0.7 MB of it, for every number of tokens that a layer was ever asked for: prompts of 400
    # lengths took 1.1 GB. Making one anew takes a hundredth of a prefill.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}
"""Environment of the child unless set otherwise; read by libraries when they are imported."""
UNUSED = ("sklearn", "scipy")
UNQUANTIZED = ("torchao", "bitsandbytes")
"""transformers and peft import these wherever they are installed, which is two fifths of the time to start. Generation
needs none of them, save for the latter two where the weights are quantised."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line, named after `vllm serve`'s options where they mean the same."""
    parser = argparse.ArgumentParser(prog="python -m llmops.engines.embedded", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder written by save_pretrained")
    parser.add_argument("--served-model-name", required=True, help="the base model's name at the endpoint")
    parser.add_argument("--host", default="127.0.0.1", help="loopback address")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--max-model-len", type=int, default=0, help="tokens of prompt and answer; 0: the model's"
    )
    parser.add_argument("--max-loras", type=int, default=8, help="adapters loaded at once")
    parser.add_argument("--max-num-seqs", type=int, default=32, help="answers generated at once")
    parser.add_argument("--max-waiting", type=int, default=256, help="answers that may wait; more get 503")
    parser.add_argument(
        "--chat-template", type=Path, default=None, help="Jinja file instead of the tokenizer's"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0: OMP_NUM_THREADS or every core"
    )
    parser.add_argument(
        "--shutdown-timeout", type=float, default=30.0, help="seconds that running answers get"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    args = make_parser().parse_args(argv)
    os.environ.update({name: os.environ.get(name, value) for name, value in DEFAULTS.items()})
    try:
        listener = reserve(args.host, args.port)
        _check_folder(args)
        _hide_unused(args.model)
        asyncio.run(_serve_until_told(load_model(args), listener, args))
    except LlmopsError as error:
        print(f"engine: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def reserve(host: str, port: int) -> socket.socket:
    """Bind before the slow part; raises EngineFailed for a taken port and BadRequest for an open address."""
    if host not in LOOPBACK:
        raise BadRequest(
            f"--host {host}: an engine answers anybody who reaches it; use one of {', '.join(LOOPBACK)}"
        )
    listener = socket.socket(socket.AF_INET6 if host == "::1" else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise EngineFailed(
            f"--port {port}: {host} cannot be bound ({error.strerror}); choose another"
        ) from error
    return listener


def _check_folder(args: argparse.Namespace) -> None:
    if not (args.model / "config.json").is_file():
        raise EngineFailed(
            f"--model {args.model}: no config.json there; give a folder written by save_pretrained"
        )
    if args.chat_template is not None and not args.chat_template.is_file():
        raise EngineFailed(f"--chat-template {args.chat_template}: no such file")


def load_model(args: argparse.Namespace) -> LanguageModel:
    """Load the weights as the command line says; raises EngineFailed where they cannot be loaded."""
    import torch

    from llmops.engines.embedded.model import LanguageModel, ModelSpec

    if args.threads:
        torch.set_num_threads(args.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return LanguageModel(
        ModelSpec(
            path=args.model,
            served_name=args.served_model_name,
            dtype=args.dtype,
            device=args.device,
            max_model_len=args.max_model_len,
            max_loras=args.max_loras,
            chat_template=args.chat_template,
        )
    )


def _hide_unused(model: Path) -> None:
    """Let no library find in this process what only quantised weights need, and what nothing here needs."""
    try:
        quantized = "quantization_config" in json.loads((model / "config.json").read_text(encoding="utf-8"))
    except ValueError:  # said by whoever loads it
        quantized = False
    for name in UNUSED if quantized else (*UNUSED, *UNQUANTIZED):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


async def _serve_until_told(model: LanguageModel, listener: socket.socket, args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await serve(model, listener, args, stop)


async def serve(
    model: LanguageModel, listener: socket.socket, args: argparse.Namespace, stop: asyncio.Event
) -> None:
    """Answer on `listener` until `stop` is set and what runs by then has ended or run out of its time.

    Raises EngineFailed where the address cannot be listened on.
    """
    from aiohttp import web

    from llmops.engines.embedded.batcher import Batcher, Limits
    from llmops.engines.embedded.catalog import Catalog
    from llmops.engines.embedded.prepare import Preparer
    from llmops.engines.embedded.server import Server

    loop = asyncio.get_running_loop()
    batcher = Batcher(model, Limits(args.max_num_seqs, args.max_waiting), loop)
    preparer = Preparer(model.tokenizer, model.max_model_len, model.vocab_size, model.grammars)
    server = Server(batcher, Catalog(model, batcher), preparer, _about(model))
    runner = web.AppRunner(
        server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=args.shutdown_timeout
    )
    batcher.start()
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
    except OSError as error:
        raise EngineFailed(f"--port {args.port}: cannot listen ({error.strerror}); choose another") from error
    host, port = listener.getsockname()[:2]
    print(f"llmops engine: {args.served_model_name} on http://{host}:{port}", flush=True)
    await stop.wait()
    await runner.cleanup()
    batcher.stop()


def _about(model: LanguageModel) -> dict[str, str]:
    """What GET /version answers: everything of this engine that could change an answer."""
    from importlib.metadata import version

    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {
        "version": versions["transformers"],
        "engine": "transformers",
        **versions,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


if __name__ == "__main__":
    sys.exit(main())
