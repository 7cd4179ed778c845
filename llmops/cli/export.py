"""`llmops merge`, `export`, `push`, `card`: an adapter leaves for other programs and other people."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmops.card import check_card, render_card
from llmops.cli.output import progress, table
from llmops.errors import BadRequest, StoreError
from llmops.registry.adapters import Registry
from llmops.registry.bases import SOURCE_FILE
from llmops.schema import JsonDict, short
from llmops.settings import Workspace, find_workspace

if TYPE_CHECKING:  # loads torch
    from llmops.train.export.source import Exported

Adapter = Annotated[
    str, typer.Argument(help="latest, a name, name@digest12, or the start of a digest.", metavar="ADAPTER")
]
Out = Annotated[Path, typer.Argument(help="The folder to write; it must not be there yet.", metavar="OUT")]
Format = Annotated[
    str,
    typer.Option(
        "--as",
        help="peft (the adapter alone), safetensors or gguf (merged), compressed (quantised for vLLM).",
    ),
]
Type = Annotated[
    str | None,
    typer.Option(
        "--type",
        help="Type of the weights. safetensors: bf16, fp32, fp16; gguf: f16, f32, bf16, q8_0; "
        "compressed: w8a8, fp8, w4a16.",
    ),
]
ToleranceNats = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        min=0,
        help="Mean nats a probed token that may differ; without it what rounding to the type explains.",
    ),
]


@dataclass(frozen=True)
class _Push:
    """How to push: where to, and what the options say."""

    repo: str
    private: bool
    dry_run: bool
    licence: str | None


Licence = Annotated[
    str | None, typer.Option("--license", help="A hub's licence id for the card, e.g. apache-2.0.")
]


def merge(
    adapter: Adapter,
    out: Out,
    dtype: Annotated[
        str,
        typer.Option(
            help="Type of the weights: bf16 or fp16 (rounded; the check says by how much), fp32 (exact)."
        ),
    ] = "bf16",
    tolerance: ToleranceNats = None,
) -> None:
    """Write base and adapter as one base model, and check that it answers as the adapter does."""
    _report(_export(find_workspace(), adapter, out, ("safetensors", dtype), tolerance))


def export(
    adapter: Adapter,
    out: Out,
    form: Format,
    type: Type = None,
    tolerance: ToleranceNats = None,
) -> None:
    """Write an adapter in the form other programs read, and check that it answers as the adapter does."""
    _report(_export(find_workspace(), adapter, out, (form, type), tolerance))


def push(
    adapter: Annotated[
        str, typer.Argument(help="An adapter, or a folder that merge or export wrote.", metavar="ADAPTER")
    ],
    repo: Annotated[str, typer.Argument(help="The hub's repository, owner/name.", metavar="REPO")],
    form: Format = "peft",
    type: Type = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files; nothing leaves this machine.")
    ] = False,
    licence: Licence = None,
) -> None:
    """Put an adapter, its card and its tokenizer on a model hub (HF_ENDPOINT), with the token in HF_TOKEN."""
    from llmops.train.export.hub import require_repo, require_token

    require_repo(repo)
    if not dry_run:
        require_token()
    workspace = find_workspace()
    given = Path(adapter)
    if (given / SOURCE_FILE).is_file():
        _push(workspace, given, _Push(repo, private, dry_run, licence))
        return
    with tempfile.TemporaryDirectory(dir=workspace.state) as scratch:
        folder = Path(scratch) / repo.partition("/")[2]
        _export(workspace, adapter, folder, (form, type), None)
        _push(workspace, folder, _Push(repo, private, dry_run, licence))


def card(
    adapter: Annotated[
        str | None,
        typer.Argument(help="latest, a name, name@digest12, or the start of a digest.", metavar="ADAPTER"),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(help="The file to write; without it the card is printed.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", help="Hold this card against the records instead (exit 4 if it lies)."),
    ] = None,
    licence: Licence = None,
) -> None:
    """Write an adapter's model card from the record; every statement names the record it was read from."""
    registry = Registry.of(find_workspace())
    if check is not None:
        _check(registry, check)
        return
    if adapter is None:
        raise BadRequest("card: which adapter; give its name, or --check FILE")
    text = render_card(registry, registry.adapter(adapter), licence=licence)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror}); give another path") from error
    typer.echo(f"card     {out}")


def _check(registry: Registry, path: Path) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: cannot be read ({error}); give a card") from error
    found = check_card(registry, text)
    free = f"; {found.n_free_lines} lines claim nothing that could be checked" if found.n_free_lines else ""
    typer.echo(f"card of {found.model_name}: {found.n_claims} claims hold{free}")


def _export(
    workspace: Workspace, adapter: str, out: Path, form: tuple[str, str | None], tolerance: float | None
) -> Exported:
    from llmops.train.export import choose_form, export
    from llmops.train.export.match import tolerance_for
    from llmops.train.export.place import require_free

    chosen = choose_form(*form)
    require_free(out)
    with progress(chosen[0]) as report:
        from llmops.train.export.source import open_source

        source = open_source(Registry.of(workspace), adapter, report)
        return export(source, out, chosen, tolerance_for(chosen[1], tolerance), report)


def _report(made: Exported) -> None:
    typer.echo(f"{made.format:<12} {made.folder}  ({made.dtype})")
    typer.echo(f"match        {made.match}")
    if made.as_base:
        typer.echo(
            f"base         base@{short(made.as_base)}: serve it, or name the folder as a recipe's base_model"
        )
    if made.system is not None:
        typer.echo(f"note         the default system prompt is not in the files, send it: {made.system!r}")
    typer.echo(f"digest       {made.files}")


def _push(workspace: Workspace, folder: Path, how: _Push) -> None:
    from llmops.train.export.hub import listed, push_folder, read_export
    from llmops.train.export.source import write_card

    said: JsonDict = read_export(folder)
    registry = Registry.of(workspace)
    if how.licence:
        write_card(registry, registry.adapter(said["adapter"]), folder, said["format"], how.licence)
    typer.echo(table(("file", "bytes", "sha256"), listed(folder)))
    if how.dry_run:
        typer.echo(f"not pushed to {how.repo}: --dry-run")
        return
    with progress("push") as report:
        pushed = push_folder(folder, how.repo, how.private, report)
    body = {
        "adapter": said["adapter"],
        "files": said["files_digest"],
        "repo": pushed.repo,
        "commit": pushed.commit,
    }
    registry.ledger.append("adapter.pushed", body)
    typer.echo(f"pushed to {pushed.url} (commit {short(pushed.commit)})")
