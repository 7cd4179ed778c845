"""What the structure of a model does not tell about memory, measured by bench/memory.py.

CPU: torch 2.13.0, glibc 2.36, x86-64, one thread; recipes marked `fit` there.
"""

from __future__ import annotations

LIBRARIES_BYTES = 605_000_000
"""Resident set of the process before weights load: interpreter, torch, transformers, PEFT, TRL, datasets."""

TRAINER_BYTES = 170_000_000
"""The same, more, once a trainer has taken its first step."""

HEAP_FACTOR = 1.1
"""What glibc takes from the system for a step on a CPU over what is alive in it, set as `heap` sets it. A block is
asked for with room to align it, so the hole that one leaves does not always take the next of its size. Solved with
`LOADED_FACTOR` from the two `fit` recipes that the heap decides about, `real` and `large`. A process that the command
line did not start takes up to twice what is alive."""

LOADED_FACTOR = 1.25
"""What a CPU holds for weights over their own size: reading and converting them leaves holes."""

CONTEXT_BYTES = 500_000_000
"""A CUDA context with cuBLAS workspaces, outside of torch's allocator; not measured here (an H100's is about that)."""

LOWER, UPPER = 0.8, 1.5
"""What was measured over what was estimated lies between these. Of 14 recipes on a CPU 13 lie within a tenth of the
estimate, seven of the eight unseen ones among them, and one at 0.87. A run is said to fit where even the upper end
does, and not to fit only where the lower end does not."""
