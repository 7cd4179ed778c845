"""What a gate's file asks of a judge. What the judge's own file says is part of it: its digest is declared, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from llmops.errors import ConfigError
from llmops.evals.gate.people import WinsAsOften, WinsMore
from llmops.evals.judge.load import Judge, load_judge


class JudgeRules(BaseModel):
    """What a language model that compares answers must have said, and by whose votes it is believed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    """The judge's file, relative to this one; its kind is pairwise."""
    suite: str | None = None
    """The suite whose answers it compares, by its name in the gate; the first when left out."""
    win_rate: Annotated[WinsAsOften | WinsMore, Field(discriminator="kind")]
    """What the candidate's calibrated win rate must be."""
    calibrated_on: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Name of a campaign with purpose gate about the two reports that are decided on: its votes correct the judge.
    Left out, the judge is shown and decides nothing."""
    min_items: int = Field(default=40, ge=3)
    """Fewer rated items calibrate nothing."""
    digest: str | None = None
    """Of what the judge's file says. Filled in when the gate is read; where it is given, another judge is refused."""

    def judge(self, folder: Path) -> Judge:
        """The judge that the file, relative to `folder`, spells.

        Raises:
            ConfigError: it is none, scores answers one by one, or is not the one with this digest.
        """
        path = folder / self.file
        judge = load_judge(path)
        if judge.config.kind != "pairwise":
            raise ConfigError(f"{path}: scores answers one by one; a gate asks a judge of kind pairwise")
        if self.digest not in (None, judge.digest):
            raise ConfigError(
                f"{path}: is {judge.digest}, the gate asks for {self.digest}; take the file back"
            )
        return judge
