"""Rows of a hub's dataset, through `datasets`; a folder goes the same way. No code of a dataset is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmops.data.containers.cells import row_of_cells
from llmops.data.formats import Raw
from llmops.data.sources.config import HubSource
from llmops.errors import CouldNotRun, DataError

REACHES_OUT = (
    "ConnectionError",
    "OfflineModeIsEnabled",
    "HfHubHTTPError",
    "Timeout",
    "ConnectError",
    "TimeoutException",
)


def hub_name(source: HubSource) -> str:
    """What rows of a dataset carry as their place: id, revision, configuration and split; of a folder its name."""
    called = Path(source.dataset).name if _is_folder(source) else source.dataset
    if source.revision:
        called += f"@{source.revision}"
    return "/".join(part for part in (called, source.config, source.split) if part)


def read_hub(source: HubSource, folder: Path) -> Iterator[Raw]:
    """Every row of the split, counted from 1.

    Raises:
        DataError: there is no such dataset, configuration or split, or its files cannot be read.
        CouldNotRun: the hub cannot be reached and the dataset is not in the cache.
    """
    name, n_read = hub_name(source), 0
    try:
        for n_read, row in enumerate(_load(source, folder), start=1):
            yield Raw(row_of_cells(row), f"{name}:{n_read}")
    except GeneratorExit:
        raise
    except Exception as error:  # the loader raises classes of many libraries
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        where = f"hub dataset {name}" + (f", after {n_read:,} rows" if n_read else "")
        if _reached_out(error):
            raise CouldNotRun(
                f"{where}: cannot be fetched ({first[:300]}); check the network, HF_TOKEN and HF_HUB_OFFLINE, or give "
                "a folder that holds it"
            ) from None
        raise DataError(
            f"{where}: cannot be loaded ({first[:300]}); correct dataset, config, split or revision"
        ) from None


def _load(source: HubSource, folder: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    path = source.dataset
    if _is_folder(source):
        path = str(folder / source.dataset)
        if not Path(path).is_dir():
            raise FileNotFoundError(f"{path}: no such folder")
    return datasets.load_dataset(
        path, source.config, split=source.split, revision=source.revision, streaming=source.streaming
    )


def _is_folder(source: HubSource) -> bool:
    return Path(source.dataset).is_absolute() or source.dataset.startswith(("./", "../"))


def _reached_out(error: BaseException | None) -> bool:
    """Whether the network stood behind an error, however it was wrapped."""
    while error is not None:
        if any(kind.__name__ in REACHES_OUT for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False
