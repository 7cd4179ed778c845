"""The README's guide to one's own data, word for word: its files, its commands in their order, its page in a browser.

Runs with the real 135M model and takes up to half an hour: `make test-slow`.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.feedback.browser import Rater, chromium

ROOT = Path(__file__).parent.parent
HEADING = "## Your own data in 15 minutes"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]


def guide() -> list[tuple[str, str]]:
    """The guide's code blocks with their languages, in order."""
    text = (ROOT / "README.md").read_text().split(f"{HEADING}\n")[1].split("\n## ")[0]
    return BLOCK.findall(text)


@dataclass
class Shell:
    """The commands of the guide in one folder, `cd` kept, with the program of this environment first on PATH."""

    folder: Path
    done: list[str] = field(default_factory=list)

    def run(self, command: str) -> str:
        """Run one command as it stands; returns what it printed."""
        words = shlex.split(command)
        if words[0] == "cd":
            self.folder = self.folder / words[1]
            return ""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ended = subprocess.run(
            command, shell=True, cwd=self.folder, env=os.environ | {"PATH": path}, capture_output=True, text=True,
            timeout=1500, stdin=subprocess.DEVNULL, check=False, executable="/bin/bash",
        )  # fmt: skip
        # The second round's verdict is the data's: the guide says so, and shows what to do with each.
        fine = (0, 1, 3) if "-rated.yaml" in command else (0,)
        assert ended.returncode in fine, f"{command}: exit {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        self.done.append(command)
        return ended.stdout


def _shape(line: str) -> str:
    """A line of output without what differs from run to run: digests, numbers, the width of columns."""
    return re.sub(
        r"\s+", " ", re.sub(r"[0-9][0-9.,:]*", "0", re.sub(r"\b[0-9a-f]{12,64}\b", "#", line))
    ).strip()


def _require_shown(command: str, promised: list[str], printed: str) -> None:
    """Every line the guide shows under a command was printed, up to digests and figures."""
    found = {_shape(line) for line in printed.splitlines()}
    for line in promised:
        assert _shape(line) in found, f"{command}: the README shows {line!r}, it printed\n{printed}"


def _judge(prompt: str, left: str, right: str) -> tuple[str, str]:
    """What somebody with a calendar says: the right answer wins, else the one with the right date; with its key."""
    day = datetime.date.fromisoformat(re.findall(r"\d{4}-\d\d-\d\d", prompt)[0])
    wanted = f"{day.day} {day:%B %Y}, a {day:%A}."
    worth = [(text == wanted) + text.startswith(wanted.split(",")[0]) for text in (left, right)]
    if worth[0] == worth[1]:
        return ("tie", "3") if worth[0] else ("both_bad", "4")
    return ("a", "1") if worth[0] > worth[1] else ("b", "2")


def _rate(url: str) -> int:
    """Rate until nothing is left; returns how many items were rated."""
    with chromium() as browser:
        rater, n = Rater(browser, url, "ann").sign_in(), 0
        while not rater.page.locator("[data-part=done-head]").is_visible():
            rater.answer(*_judge(*rater.shown()))
            n += 1
            rater.page.wait_for_function(
                "() => document.querySelector('[data-choice=a]:not([aria-disabled=true])')?.offsetParent"
                " || document.querySelector('[data-part=done-head]')?.offsetParent"
            )
        return n


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    try:
        yield shell
    finally:
        shell.run("llmops stop || true")
        shell.run("llmops feedback stop || true")


def _commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Commands of a console block, comments cut off, each with the lines that the guide shows under it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command.split("  #")[0].strip(), [line for line in shown if line.strip()]


def test_guide_to_own_data_works_word_for_word(shell: Shell) -> None:
    n_rated = 0
    for language, block in guide():
        if language == "python":
            name = block.splitlines()[0].removeprefix("# ")
            (shell.folder / name).write_text(block)
            continue
        assert language == "console"
        for command, promised in _commands(block):
            printed = shell.run(command)
            _require_shown(command, promised, printed)
            if command.startswith("llmops feedback ui"):
                n_rated += _rate(printed.split()[-1])
            if "-rated.yaml" in command:
                assert re.search(r"^win_rate +50\.0 -> [0-9.]+ ", printed, re.MULTILINE), printed
                if re.search(r"^PASS ", printed, re.MULTILINE):
                    shell.run("llmops approve")
                    shell.run("llmops release promote dates")
    assert n_rated > 0
    verbs = {tuple(shlex.split(c)[1:2]) for c in shell.done if c.startswith("llmops ")}
    assert {
        ("init",),
        ("data",),
        ("finetune",),
        ("serve",),
        ("eval",),
        ("gate",),
        ("release",),
        ("feedback",),
    } <= verbs
    assert not [c for c in shell.done if "|| true" in c]
