"""Progress as plain lines: how long work is going to take."""

from __future__ import annotations

import pytest

from llmops.cli import output


def test_time_left_counts_from_where_resumed_work_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    with output.progress("finetune") as report:
        for seconds, done, total, note in (
            (1100.0, 0, 0, "loading libraries"),
            (1200.0, 500, 600, "loading the base model"),
            (1210.0, 510, 600, "loss 2.000  565 tokens/s (67 supervised)"),
        ):
            clock[0] = seconds
            report(done, total, note)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "  finetune 510/600, about 90 s left  loss 2.000  565 tokens/s (67 supervised)"
