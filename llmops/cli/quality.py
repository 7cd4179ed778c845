"""`llmops data check` and `llmops data diff`: what is in rows, and what became of them."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from llmops.cli.output import as_json, progress, table
from llmops.errors import EXIT_FAIL, ConfigError, LlmopsError
from llmops.records import Dropped, QualityReport
from llmops.registry.adapters import Registry
from llmops.schema import Progress
from llmops.settings import Workspace, find_workspace

if TYPE_CHECKING:
    from llmops.data.diff import Difference, Placed
    from llmops.data.quality.length import CountTokens
    from llmops.train.recipe import Recipe

N_SHOWN = 5  # examples of each kind that are printed
N_CHARACTERS = 60


def check(
    target: Annotated[Path, typer.Argument(help="A file of rows, a recipe, or a data file.")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check rows for copies, personal data, language, length and cases of suites; exit 2 when a gate refuses them."""
    from llmops.data.quality import require_clean

    workspace = find_workspace()
    with progress("check") as report:
        found, unreadable = _report_of(target, workspace, report)
    if json:
        as_json({**found.to_dict(), "unreadable": [vars(d) for d in unreadable]})
    else:
        print_report(found)
        for dropped in unreadable[:N_SHOWN]:
            typer.echo(f"  unreadable     {dropped.source}: {dropped.reason}")
        if len(unreadable) > N_SHOWN:
            typer.echo(f"  unreadable     and {len(unreadable) - N_SHOWN:,} more")
    require_clean(found, str(target))


def diff(
    before: Annotated[str, typer.Argument(help="A snapshot's name or digest, or a file of rows.")],
    after: Annotated[str, typer.Argument(help="Another one.")],
    json: Annotated[bool, typer.Option("--json", help="Print all that differs as JSON.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 1 when they differ.")] = False,
) -> None:
    """Compare two snapshots or files: rows added, removed, changed (same prompt, other answer), moved between pools."""
    from llmops.data.diff import compare, find_side

    registry = Registry.of(find_workspace())
    old, new = (find_side(reference, registry.store, registry.ledger) for reference in (before, after))
    found = compare(old, new)
    if json:
        as_json({"before": old.what, "after": new.what, "n_rows": [old.n_rows, new.n_rows], **_plain(found)})
    else:
        typer.echo(f"{old.what} ({old.n_rows:,} rows) -> {new.what} ({new.n_rows:,} rows)")
        for line in _lines(found):
            typer.echo(line)
    if exit_code and found.any:
        raise typer.Exit(EXIT_FAIL)


def print_report(report: QualityReport) -> None:
    """Print what each check found, and its worst rows."""
    typer.echo(
        f"{report.rows}: {report.n_rows:,} rows, {report.n_dropped:,} dropped, {report.n_redacted:,} redacted"
    )
    rows = []
    for name, result in report.checks.items():
        measured = ", ".join(f"{key} {value:g}" for key, value in list(result.distribution.items())[:6])
        rows.append((name, result.action, f"{result.n_found:,}", measured))
    typer.echo(table(("check", "action", "found", "measured"), rows))
    for name, result in report.checks.items():
        if result.not_checked:
            typer.echo(f"  {name}: not checked: {result.not_checked}")
        for example in result.examples[:N_SHOWN]:
            typer.echo(f"  {name:<15} {example.source}  {example.reason}")


def _report_of(target: Path, workspace: Workspace, report: Progress) -> tuple[QualityReport, list[Dropped]]:
    """The report of a file, recipe or data file with every check on, and its rows that cannot be read."""
    if target.suffix in (".yaml", ".yml"):
        settings = _settings(target)
        if "base_model" in settings:
            return _of_recipe(target, workspace, report)
        if "source" in settings:
            return _of_dataset(target, workspace, report)
        raise ConfigError(f"{target}: is neither a recipe nor a data file; give one, or a file of rows")
    from llmops.data.quality import Quality, Surroundings, assess
    from llmops.data.rows import read_any

    found = list(read_any(target))
    unreadable = [row for row in found if isinstance(row, Dropped)]
    rows = [row for row in found if not isinstance(row, Dropped)]
    around = Surroundings(_cases(workspace), progress=report)
    return assess(rows, Quality().reporting(), str(target), around).report, unreadable


def _of_recipe(path: Path, workspace: Workspace, report: Progress) -> tuple[QualityReport, list[Dropped]]:
    from llmops.data.quality import Surroundings, assess
    from llmops.train.frozen import read_unchecked
    from llmops.train.recipe import load_recipe

    recipe = load_recipe(path)
    around = Surroundings(_cases(workspace), _tokenizer(recipe, report), report)
    with tempfile.TemporaryDirectory() as scratch:
        rows, unreadable = read_unchecked(recipe, path.parent, Registry.of(workspace), Path(scratch))
        found = assess(rows, recipe.quality.reporting(), f"data of {recipe.name}", around).report
    return found, unreadable


def _of_dataset(path: Path, workspace: Workspace, report: Progress) -> tuple[QualityReport, list[Dropped]]:
    from llmops.data.gate import Gates
    from llmops.data.quality.suites import suite_reader
    from llmops.data.snapshot import check_dataset

    registry = Registry.of(workspace)
    read_cases = suite_reader(workspace.suites, registry.store, registry.ledger)
    return check_dataset(path, Gates(read_cases, progress=report, enforce=False))


def _cases(workspace: Workspace) -> Any:
    from llmops.data.quality.suites import suite_reader

    registry = Registry.of(workspace)
    return partial(suite_reader(workspace.suites, registry.store, registry.ledger), {})


def _tokenizer(recipe: Recipe, report: Progress) -> CountTokens | None:
    """Counts tokens as the recipe's base does; None, with a note, when the base is not there."""
    from llmops.registry.bases import glimpse_base
    from llmops.train.gate import counter
    from llmops.train.libraries import quiet_libraries

    quiet_libraries()
    from llmops.train.model import load_tokenizer

    try:
        base = glimpse_base(recipe.base_model, lambda note: report(0, 0, note))
    except LlmopsError as error:
        typer.echo(f"note: tokens are not counted: {error}", err=True)
        return None
    return counter(load_tokenizer(base))


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error}); mend the file") from None
    return found if isinstance(found, dict) else {}


def _lines(found: Difference) -> list[str]:
    lines = [f"same     {found.n_same:,}"]
    for word, rows in (("added", found.added), ("removed", found.removed)):
        lines.append(f"{word:<8} {len(rows):,}")
        lines += [f"  {p.row.source} ({p.pool})  {_asked(p)}" for p in rows[:N_SHOWN]]
    lines.append(f"{'changed':<8} {len(found.changed):,}")
    for a, b in found.changed[:N_SHOWN]:
        lines.append(f"  {b.row.source} ({b.pool})  {_asked(b)}: {_answered(a)!r} -> {_answered(b)!r}")
    lines.append(f"{'moved':<8} {len(found.moved):,}")
    lines += [f"  {b.row.source} ({a.pool} -> {b.pool})  {_asked(b)}" for a, b in found.moved[:N_SHOWN]]
    return lines


def _plain(found: Difference) -> dict[str, Any]:
    """All that differs as JSON values: rows by source and pool, changed ones with both answers."""

    def place(placed: Placed) -> dict[str, str]:
        return {"source": placed.row.source, "pool": placed.pool}

    return {
        "n_same": found.n_same,
        "added": [place(p) for p in found.added],
        "removed": [place(p) for p in found.removed],
        "changed": [
            {
                "before": place(a) | {"answer": _answered(a, None)},
                "after": place(b) | {"answer": _answered(b, None)},
            }
            for a, b in found.changed
        ],
        "moved": [{"before": place(a), "after": place(b)} for a, b in found.moved],
    }


def _asked(placed: Placed) -> str:
    from llmops.data.quality.texts import prompt_of

    return repr(_cut(" ".join(m.content for m in prompt_of(placed.row)), N_CHARACTERS))


def _answered(placed: Placed, n_characters: int | None = N_CHARACTERS) -> str:
    from llmops.data.quality.texts import answers_of

    return _cut(" | ".join(answers_of(placed.row)), n_characters)


def _cut(text: str, n_characters: int | None) -> str:
    return text if n_characters is None or len(text) <= n_characters else text[:n_characters] + "..."
