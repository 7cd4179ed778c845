"""What a recipe's rows look like to its training: every token, and whether it is trained on. Loads no weights.

Reads the recipe's base (its tokenizer) and data, as a run does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmops.chat import Encoder
from llmops.data.quality import Surroundings
from llmops.errors import BadRequest
from llmops.records import Dropped
from llmops.registry.adapters import Registry
from llmops.registry.bases import glimpse_base
from llmops.schema import JsonDict, Progress
from llmops.settings import Workspace
from llmops.train.examples import read_examples
from llmops.train.gate import UNCHECKED
from llmops.train.libraries import quiet_libraries
from llmops.train.parent import continue_recipe
from llmops.train.recipe import Distill, Sft, load_recipe
from llmops.train.rows import Example, Judged, Pair


@dataclass(frozen=True)
class Segment:
    """A run of tokens that are all trained on, or all only read; `text` is what they add to the text."""

    trained: bool
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Shown:
    """One sequence of tokens that a row becomes; `title` says which, where a row becomes several."""

    title: str
    segments: tuple[Segment, ...]

    @property
    def n_tokens(self) -> int:
        """Length in tokens."""
        return sum(len(s.ids) for s in self.segments)

    @property
    def n_trained(self) -> int:
        """Tokens that are trained on."""
        return sum(len(s.ids) for s in self.segments if s.trained)


@dataclass(frozen=True)
class ShownRow:
    """A row: its place, its sequences, and the reason why it is not trained on (None for one that is kept)."""

    source: str
    sequences: tuple[Shown, ...]
    reason: str | None = None
    row: str | None = None

    def to_dict(self) -> JsonDict:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ShownRows:
    """All rows of a recipe by count, and the ones that were asked for."""

    n_rows: dict[str, int]
    rows: tuple[ShownRow, ...]


def show_mask(recipe_path: Path, workspace: Workspace, wanted: str | int, progress: Progress) -> ShownRows:
    """Rows of a recipe as its training sees them.

    Args:
        recipe_path: the YAML file.
        workspace: where data and adapters are.
        wanted: how many rows to show, from the first on; or one row: its number, from 1, or its place, `file:line`.
        progress: told what is being done.

    Raises:
        ConfigError: the recipe is wrong.
        BadRequest: the base or the data are not there, or no row stands at that place.
        DataError: a file is missing.
    """
    recipe = load_recipe(recipe_path)
    progress(0, 0, "loading libraries")
    quiet_libraries()
    from llmops.train.model import load_tokenizer

    base = glimpse_base(recipe.base_model, lambda note: progress(0, 0, note))
    registry = Registry.of(workspace)
    recipe, _ = continue_recipe(recipe, base, registry, recipe_path)
    if isinstance(recipe.method, Distill):  # a look asks no teacher: the rows' own answers are shown
        recipe = recipe.model_copy(update={"method": Sft(kind="sft")})
    parts = (load_tokenizer(base), recipe.contract_on(base.contract))
    unchecked = replace(UNCHECKED, around=Surroundings(progress=progress))
    examples = read_examples(recipe, recipe_path.parent, registry, parts, unchecked)
    by_source: dict[str, list[Any]] = {}
    for one in (*examples.train, *examples.held_out, *examples.dropped):
        by_source.setdefault(one.source, []).append(one)
    encoder = Encoder(*parts)
    places = sorted(by_source, key=_place)
    chosen = _chosen(places, wanted, recipe_path)
    return ShownRows(examples.n_rows, tuple(_row(place, by_source[place], encoder) for place in chosen))


def _chosen(places: Sequence[str], wanted: str | int, where: Path) -> Sequence[str]:
    if isinstance(wanted, int):
        return places[:wanted]
    if wanted.isdecimal() and 1 <= int(wanted) <= len(places):
        return places[int(wanted) - 1 : int(wanted)]
    if wanted in places:
        return [wanted]
    raise BadRequest(
        f"{where}: has no row {wanted}; give 1 to {len(places):,}, or a place such as {places[0] if places else 'f:1'}"
    )


def _place(source: str) -> tuple[str, int]:
    path, _, line = source.rpartition(":")
    return (path, int(line)) if line.isdecimal() else (source, 0)


def _row(source: str, found: Sequence[Any], encoder: Encoder) -> ShownRow:
    first = found[0]
    if isinstance(first, Dropped):
        return ShownRow(source, (), first.reason, first.row)
    once = list(dict.fromkeys(found))  # a mixture may read a row several times
    return ShownRow(source, tuple(s for one in once for s in _sequences(one, encoder, len(once) > 1)))


def _sequences(example: Any, encoder: Encoder, several: bool) -> Iterator[Shown]:
    """The sequences of one example, whatever its method."""
    if isinstance(example, Example):
        alone = several and not example.encoded.context_turns
        title = "an earlier answer, after the prompt it is given to" if alone else ""
        yield _sequence(title, encoder, example.encoded.input_ids, example.encoded.loss_mask)
    elif isinstance(example, Pair):
        for title, answer in (("chosen", example.chosen_ids), ("rejected", example.rejected_ids)):
            yield _answered(title, encoder, example.prompt_ids, answer)
    elif isinstance(example, Judged):
        yield _answered("good" if example.good else "bad", encoder, example.prompt_ids, example.answer_ids)
    else:
        ids = example.token_ids
        yield _sequence("prompt: what follows it is sampled", encoder, ids, (0,) * len(ids))


def _answered(title: str, encoder: Encoder, prompt: Sequence[int], answer: Sequence[int]) -> Shown:
    mask = (0,) * len(prompt) + (1,) * len(answer)
    return _sequence(title, encoder, (*prompt, *answer), mask)


def _sequence(title: str, encoder: Encoder, ids: Sequence[int], mask: Sequence[int]) -> Shown:
    segments = []
    first = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[first]:
            text = encoder.text_of(ids, first, end)
            segments.append(Segment(bool(mask[first]), text, tuple(ids[first:end])))
            first = end
    return Shown(title, tuple(segments))
