"""`export --as peft`: the adapter alone, as PEFT and vLLM load it, with its tokenizer and chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from llmops.card.render import HUB_ID
from llmops.chat import CONTRACT_FILE
from llmops.registry.adapters import CONFIG_FILE, WEIGHTS_FILE
from llmops.schema import JsonDict, Progress, no_progress
from llmops.train.export.match import Tolerance, adapter_answers, compare, measure, require_match
from llmops.train.export.place import new_folder, require_free
from llmops.train.export.source import Exported, Source, finish, note_export
from llmops.train.probes import load_adapted

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def write_peft(
    source: Source, out: Path, dtype: str, tolerance: Tolerance, progress: Progress = no_progress
) -> Exported:
    """Write the adapter's folder and check that it answers on its base as the registered one does.

    Its configuration names the base as other machines know it: a hub's id and commit where it is one.

    Raises:
        BadRequest: the path is taken.
        InvalidEvidence: the answers differ; nothing is left behind.
        StoreError: the disk did not take it; nothing is left behind.
    """
    require_free(out)
    with new_folder(out) as stage:
        for name in (WEIGHTS_FILE, CONTRACT_FILE):
            shutil.copyfile(source.folder / name, stage / name)
        _write_config(source, stage)
        for name in _TOKENIZER_FILES:
            if (source.base.path / name).is_file():
                shutil.copyfile(source.base.path / name, stage / name)
        progress(0, 0, "answering with the written adapter")
        answers = adapter_answers(source.base.path, source.folder, source.probes)
        model = load_adapted(source.base.path, stage, "cpu")
        match = compare(source.probes, measure(model, source.probes, answers), tolerance)
        require_match(match, f"{source.where} as a PEFT folder")
        made = finish(source, stage, Exported(out, "peft", dtype, "", match))
    note_export(source, made)
    return made


def _write_config(source: Source, folder: Path) -> None:
    config: JsonDict = json.loads((source.folder / CONFIG_FILE).read_text())
    hub = HUB_ID.fullmatch(source.base.ref)
    # The registry keeps the base's digest as the revision, which no other program could look up.
    config["revision"] = hub["commit"] if hub else None
    config["base_model_name_or_path"] = hub["id"] if hub else source.base.ref
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
