"""A whole workspace around a tiny model, and the command line run in it as a user runs it: for tests of the loop."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import in_process
from tests.in_process import Done

NAME = "docs"
ANSWERS = ("Return the sum.", "Return the list.", "Close the file.")

DATA = """\
# llmops data build {root}/data.yaml
name: docs
licence: CC0-1.0
origin: made up for a test
source: {{kind: files, paths: [rows.jsonl]}}
pools: {{train: 0.7, rate: 0.1, gate: 0.2}}
"""

RECIPE = """\
name: docs
base_model: {base}
method: {{kind: sft}}
data: {{kind: dataset, name: docs}}
lora: {{r: {r}, alpha: {alpha}}}
n_steps: {n_steps}
batch: {{per_device: 8}}
learning_rate: {learning_rate}
precision: fp32
seed: {seed}
device: cpu
tracking: {tracking}
"""

PROFILE = """\
base_model: {base}
port: 0
max_model_tokens: 512
engine: {{kind: transformers, dtype: float32, device: cpu, n_threads: 1}}
"""

SUITE = """\
name: docs
cases: {{kind: dataset, name: docs, n_max: {n_cases}}}
metrics: [rougeL, bleu, chrf, exact_match]
decoding: {{temperature: 0, max_tokens: 40}}
"""

GATE = """\
name: docs
public_name: docs
suite: suite.yaml
min_cases: 20
primary: {{metric: rougeL, kind: {kind}, {bound}}}
guardrails:
  - {{metric: exact_match, margin: 20}}
"""

SECOND_RECIPE = """\
name: docs
base_model: {base}
method: {{kind: dpo, beta: 0.1}}
data: {{kind: preferences, name: docs-train}}
continue_from: docs
n_steps: {n_steps}
batch: {{per_device: 8}}
learning_rate: {learning_rate}
precision: fp32
seed: 0
held_out_frac: 0.1
device: cpu
tracking: none
"""

TRAIN_CAMPAIGN = """\
name: docs-train
purpose: train
dataset: docs
models: [docs]
decoding: {{temperature: {temperature}, max_tokens: 40}}
n_items: {n_items}
"""

GATE_CAMPAIGN = """\
name: docs-gate
purpose: gate
gate: {gate}
n_items: {n_items}
"""

RATED_GATE = """\
name: docs-rated
public_name: docs
suite: suite.yaml
min_cases: 20
guardrails:
  - {{metric: rougeL, margin: 20}}
ratings:
  campaign: docs-gate
  min_items: {min_items}
  win_rate: {{kind: non_inferior, margin: {margin}}}
  max_both_bad: 95
approvals: 1
"""


@dataclass(frozen=True)
class Loop:
    """A workspace's folder and what is done in it."""

    root: Path
    cache: Path

    def llmops(self, *arguments: str, check: bool = True, **env: str) -> Done:
        """Run `llmops` in the workspace, without a process of its own: most of that would import torch."""
        done = in_process.llmops(self.root, *arguments, env=self.environment() | env, typed=io.StringIO())
        return self._checked(arguments, done, check)

    def child(self, *arguments: str, check: bool = True, timeout_s: float = 240, **env: str) -> Done:
        """Run `llmops` in the workspace as a process of its own, as a user's shell does."""
        done = subprocess.run(
            [*self.command(), *arguments],
            cwd=self.root,
            env=self.environment() | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return self._checked(arguments, Done(done.returncode, done.stdout, done.stderr), check)

    def _checked(self, arguments: tuple[str, ...], done: Done, check: bool) -> Done:
        assert not check or done.code == 0, f"{arguments}: exit {done.code}\n{done.out}\n{done.err}"
        return done

    def command(self) -> tuple[str, ...]:
        """The words that run `llmops` as a child."""
        return sys.executable, "-m", "llmops.cli"

    def environment(self) -> dict[str, str]:
        """The variables a command in this workspace runs under."""
        env = {k: v for k, v in os.environ.items() if k not in ("CI", "LLMOPS_WORKSPACE")}
        return env | {
            "LLMOPS_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def write(self, name: str, template: str, **values: object) -> Path:
        """Write a YAML of the workspace from its template."""
        path = self.root / name
        path.write_text(template.format(root=self.root, **values))
        return path

    def write_rows(self, n: int = 60) -> None:
        """Rows that a tiny model can learn: the answer depends on one word of the prompt."""
        rows = [
            {"prompt": f"{word} {i}", "completion": answer, "group": f"g{i}"}
            for i in range(n)
            for word, answer in zip(("add", "list", "close"), ANSWERS, strict=True)
        ]
        (self.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answered_by(self, model: str, text: str) -> str:
        """Ask `model` and return the first 12 digits of who answered, as the gateway's request log has it."""
        request_id = self.chat(model, text)[1]["x-request-id"]
        deadline = time.monotonic() + 10  # the log is written behind the answer
        while time.monotonic() < deadline:
            for row in self.requests():
                if row["request_id"] == request_id:
                    return str(row["answered_by"])[:12]
            time.sleep(0.05)
        raise AssertionError(f"request {request_id} is not in the request log")

    def requests(self) -> list[dict[str, Any]]:
        """The gateway's request log, oldest first."""
        text = (self.root / ".llmops/logs/requests.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def url(self) -> str:
        """The address of the running endpoint."""
        return str(json.loads((self.root / ".llmops/serve.json").read_text())["url"])

    def chat(self, model: str, text: str, **fields: object) -> tuple[dict[str, Any], dict[str, str]]:
        """One chat completion; returns the body and the headers (lower case)."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 40,
            "temperature": 0,
        } | fields
        request = urllib.request.Request(
            f"{self.url()}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response), {k.lower(): v for k, v in response.headers.items()}
