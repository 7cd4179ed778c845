"""Our verdict on an adapter's configuration is the one of vLLM's own PEFTHelper."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from llmops.engines.servability import refusals
from llmops.engines.vllm import environment, find_vllm
from llmops.registry.bases import Base
from tests.engines.adapter_configs import MAX_RANK, OURS_ALONE, SAME
from tests.vllm.conftest import ROOT, vllm_spec

ASK_VLLM = """
import json, sys
from vllm.config.lora import LoRAConfig
from vllm.lora.peft_helper import PEFTHelper
limits = LoRAConfig(max_lora_rank=int(sys.argv[1]), max_loras=1)
def verdict(config):
    try:
        PEFTHelper.from_dict(config).validate_legal(limits)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
answers = [verdict(config) for config in json.load(sys.stdin)]
print("ANSWERS", json.dumps(answers))
"""


def test_verdicts_equal_vllms(base: Base) -> None:
    spec = vllm_spec(base, "float32", 1)
    python = find_vllm(spec, ROOT).parent / "python"
    cases = SAME + OURS_ALONE
    done = subprocess.run(
        [python, "-c", ASK_VLLM, str(MAX_RANK)],
        input=json.dumps([case.config for case in cases]),
        env=environment(spec, os.environ),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(python).parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.rpartition("ANSWERS ")[2])
    for case, answer in zip(cases, answers, strict=True):
        assert (answer is not None) is case.vllm, (case.change, answer)
        assert bool(refusals(case.config, MAX_RANK)) is case.ours
    same = [bool(refusals(case.config, MAX_RANK)) for case in SAME]
    assert same == [answer is not None for answer in answers[: len(SAME)]]
