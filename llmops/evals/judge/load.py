"""A judge read from its file, with the text of its template. Paths in a file are relative to it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from llmops.errors import ConfigError
from llmops.evals.judge.config import JudgeConfig, JudgeFile
from llmops.evals.judge.prompt import check_template
from llmops.schema import digest_of
from llmops.settings import load_yaml

# How patiently a judge is asked, and by which key, changes no judgement.
_PATIENCE = {"concurrency", "answer_s", "retry_s", "api_key_env"}


@dataclass(frozen=True)
class Judge:
    """A judge and the text of its template."""

    config: JudgeConfig
    template: str

    @property
    def template_digest(self) -> str:
        """Digest of the template's text."""
        return digest_of(self.template)

    @property
    def digest(self) -> str:
        """Digest of what could change a judgement: two sets with one judge digest were asked in the same way."""
        config = self.config.model_dump(mode="json", exclude={"template": True, "endpoint": _PATIENCE})
        return digest_of({"config": config, "template": self.template_digest})


def load_judge(path: Path) -> Judge:
    """The judge in a YAML file, with its template.

    Raises:
        ConfigError: the file does not say what it must, or its template is missing or no template.
    """
    config = load_yaml(path, JudgeFile).root
    if config.template is None:
        return Judge(config, (files("llmops.evals.judge") / f"{config.kind}.j2").read_text(encoding="utf-8"))
    where = path.parent / config.template
    try:
        text = where.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: template {where} cannot be read ({error}); give a text file") from None
    check_template(text, config, str(where))
    return Judge(config, text)
