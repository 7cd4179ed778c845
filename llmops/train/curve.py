"""A run's curve: one line a step in metrics.jsonl, the same to the tracker, and in a few words to whoever looks on."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from llmops.schema import JsonDict, Progress
from llmops.tracking import Tracker

N_LAST = 20  # steps that the shown speed is an average of


class Curve:
    """Takes every step's figures; as a context it keeps the file open."""

    def __init__(self, path: Path, before: Sequence[JsonDict], tracker: Tracker, progress: Progress) -> None:
        """Go on behind the lines that are in the file already.

        Args:
            path: metrics.jsonl.
            before: its lines.
            tracker: gets every figure.
            progress: gets step, steps, and loss and speed in words.
        """
        self._file = path.open("a")
        self._tracker, self._progress = tracker, progress
        self._begun = time.monotonic() - (float(before[-1]["elapsed_s"]) if before else 0.0)
        self._last: deque[tuple[float, float, float]] = deque(maxlen=N_LAST)

    def __enter__(self) -> Curve:
        """The curve."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def on_step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Take one step's figures."""
        self._write({"step": step, **figures, "elapsed_s": round(time.monotonic() - self._begun, 3)})
        self._tracker.log_metrics(figures, step)
        self._progress(step, total, f"loss {figures['loss']:.3f}{self._speed(figures)}")

    def close_with(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the run's closing figures."""
        self._tracker.log_metrics(figures, step)
        self._write({"step": step, **figures})

    def _speed(self, figures: Mapping[str, float]) -> str:
        """Tokens a second over the last steps, all and supervised; nothing where a method counts none."""
        if not figures.get("tokens_per_s"):
            return ""
        n_tokens, n_supervised = figures["n_tokens"], figures.get("n_supervised_tokens", 0.0)
        self._last.append((n_tokens, n_supervised, n_tokens / figures["tokens_per_s"]))
        n_tokens, n_supervised, seconds = map(sum, zip(*self._last, strict=True))
        supervised = f" ({n_supervised / seconds:,.0f} supervised)" if n_supervised else ""
        return f"  {n_tokens / seconds:,.0f} tokens/s{supervised}"

    def _write(self, line: JsonDict) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
