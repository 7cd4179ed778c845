"""`llmops capture`: what is kept of served answers and of what people say of them."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmops.cli.output import as_json, table
from llmops.errors import BadRequest
from llmops.schema import JsonDict, short
from llmops.settings import find_workspace, stamp

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from llmops.capture import Feedback, Filter

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What is kept of served answers and of what people say of them. Texts are read with LLMOPS_CAPTURE_KEY.",
)

Name = Annotated[str | None, typer.Option("--name", help="Only responses under this public name.")]
Since = Annotated[str | None, typer.Option(help="Only responses from this time on, such as 2026-11-01.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def key() -> None:
    """Print a new key. Set it as LLMOPS_CAPTURE_KEY, or put it before the old one with a comma; keep it elsewhere too.

    What is encrypted with a key that is lost cannot be read any more.
    """
    from llmops.capture.keyring import new_key

    typer.echo(new_key())


@app.command("list")
def list_captures(
    name: Name = None,
    since: Since = None,
    tenant: Tenant = None,
    limit: Annotated[int, typer.Option(min=1, help="So many, the newest.")] = 20,
    json: Json = False,
) -> None:
    """List captured responses without their texts, newest first."""
    from llmops.capture.reading import captured

    rows = [
        {
            "response": one.response, "at": one.at, "model": one.asked, "adapter": one.adapter, "arm": one.arm,
            "tenant": one.tenant, "shadow_of": one.shadow_of, "n_feedback": n_feedback,
        }
        for one, n_feedback in captured(_engine(), _filter(name, since, tenant), limit)
    ]  # fmt: skip
    if json:
        for row in rows:
            typer.echo(jsonlib.dumps(row, ensure_ascii=False))
        return
    shown = [
        (r["response"], r["at"], r["model"], short(str(r["adapter"])), r["arm"] or "-", r["n_feedback"])
        for r in rows
    ]
    typer.echo(table(("response", "at", "model", "adapter", "arm", "feedback"), shown))


@app.command()
def show(
    response: Annotated[str, typer.Argument(help="The response's id, such as chatcmpl-...")],
    json: Json = False,
) -> None:
    """Show one response: who answered, its texts as they were kept, and everything that was said of it."""
    from llmops.capture import Keyring
    from llmops.capture.reading import feedback_about, interaction

    engine, keyring = _engine(), Keyring.of_environment()
    one = interaction(engine, keyring, response)
    said = [_feedback_line(row) for row in feedback_about(engine, keyring, response)]
    body: JsonDict = {
        **one.served.__dict__,
        "messages": [message.to_turn() for message in one.messages],
        "answers": [{"content": a.content, "finish_reason": a.finish_reason} for a in one.answers],
        "problem": one.problem,
        "feedback": said,
    }
    if json:
        as_json(body)
        return
    for name, value in one.served.__dict__.items():
        typer.echo(f"{name:<10} {value if value is not None else '-'}")
    for message in one.messages:
        typer.echo(f"\n{message.role}: {message.content}")
    for i, answer in enumerate(one.answers):
        typer.echo(f"\nanswer {i} ({answer.finish_reason}): {answer.content}")
    if one.problem is not None:
        typer.echo(f"\n{one.problem}")
    for line in said:
        typer.echo(
            "\nfeedback "
            + jsonlib.dumps({k: v for k, v in line.items() if v is not None}, ensure_ascii=False)
        )


@app.command()
def stats(name: Name = None, since: Since = None, tenant: Tenant = None, json: Json = False) -> None:
    """Count what is kept and what was said, by public name, model and arm; reads no text."""
    from llmops.capture.statistics import standing

    now = standing(_engine(), _filter(name, since, tenant))
    lines = [line.__dict__ for line in now.lines]
    if json:
        as_json({**now.__dict__, "lines": lines})
        return
    rows = [
        (
            line.asked, short(line.adapter), line.arm or "-", line.n_responses, line.n_texts, line.n_up, line.n_down,
            "-" if line.mean_score is None else f"{line.mean_score:.2f} ({line.n_scores})", line.n_preferred,
            line.n_corrected,
        )
        for line in now.lines
    ]  # fmt: skip
    header = (
        "model",
        "adapter",
        "arm",
        "responses",
        "captured",
        "up",
        "down",
        "score",
        "preferred",
        "corrected",
    )
    typer.echo(table(header, rows))
    keys = ", ".join(f"{n:,} under key {key}" for key, n in now.keys.items()) or "none"
    typer.echo(
        f"{now.n_texts:,} texts ({now.n_text_bytes:,} bytes, {now.n_redacted:,} things redacted): {keys}"
    )
    typer.echo(f"{now.n_feedback:,} feedback; the oldest text is of {now.oldest_text or '-'}")


@app.command()
def purge(
    profile: Annotated[
        Path, typer.Argument(help="The serving profile, whose keep_days and keep_lineage_days count.")
    ],
) -> None:
    """Delete what is older than the profile keeps; a gateway that runs does so every hour."""
    from llmops.capture.retention import purge as delete
    from llmops.serving.profile import load_profile

    gone = delete(_engine(), load_profile(profile).capture)
    typer.echo(
        f"deleted {gone.n_texts:,} texts, {gone.n_responses:,} responses, {gone.n_feedback:,} feedback"
    )


@app.command()
def forget(
    user: Annotated[str, typer.Option(help="The id that was sent as `user` with requests or feedback.")],
    tenant: Annotated[
        str | None, typer.Option(help="Whose user it is; default: the user of that id of every tenant.")
    ] = None,
) -> None:
    """Delete a person's texts and feedback, and the person's mark from every response.

    Exports and backups that were made before are files of their own: delete those yourself.
    """
    from llmops.capture import Keyring
    from llmops.capture.retention import forget as delete
    from llmops.ledger import Ledger

    engine = _engine()
    gone = delete(engine, Keyring.of_environment(), user, tenant)
    typer.echo(
        f"deleted {gone.n_texts:,} texts, {gone.n_feedback:,} feedback, {gone.n_items:,} rated items; "
        f"{gone.n_unnamed:,} responses unnamed"
    )
    n_exports = len(Ledger(engine).events("capture.exported"))
    if n_exports:
        typer.echo(
            f"{n_exports} export(s) were written before; `llmops ledger log --kind capture.exported` lists them"
        )


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="The JSONL file to write; two more are written beside it.")],
    form: Annotated[
        Literal["sft", "preferences", "kto"], typer.Option("--as", help="What the rows are for.")
    ],
    name: Name = None,
    since: Since = None,
    tenant: Tenant = None,
    adapter: Annotated[
        str | None, typer.Option(help="Only this adapter's answers, by its full digest.")
    ] = None,
) -> None:
    """Write rows for training from captured answers and feedback; every answer that became none is listed, with why."""
    from dataclasses import replace

    from llmops.capture import Keyring
    from llmops.capture.export import Request
    from llmops.capture.export import export as write
    from llmops.data import gate_prompts
    from llmops.registry.adapters import Registry

    registry = Registry.of(find_workspace())
    forbidden = frozenset(gate_prompts(registry.store, registry.ledger))
    wanted = replace(_filter(name, since, tenant), adapter=adapter)
    done = write(registry.ledger.engine, Keyring.of_environment(), Request(form, wanted, forbidden), path)
    typer.echo(f"{done.path}: {done.n_rows:,} rows, sha256 {short(done.sha256)}")
    for reason, n in done.n_dropped.items():
        typer.echo(f"  {n:,} dropped: {reason}")


def _engine() -> Engine:
    from llmops.db import open_database

    return open_database(find_workspace().database_url)


def _filter(name: str | None, since: str | None, tenant: str | None) -> Filter:
    from datetime import UTC, datetime

    from llmops.capture import Filter

    if since is None:
        return Filter(asked=name, tenant=tenant)
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        raise BadRequest(
            f"--since {since!r:.40}: is no time; write 2026-11-01 or 2026-11-01T09:30Z"
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    text = stamp(moment)
    return Filter(asked=name, tenant=tenant, since=text)


def _feedback_line(row: Feedback) -> JsonDict:
    return {
        "id": row.id, "at": row.at, "choice": row.choice, "thumb": row.thumb, "score": row.score,
        "comment": row.comment, "correction": row.correction,
        "preferred_over": row.over.response if row.over else None,
    }  # fmt: skip
