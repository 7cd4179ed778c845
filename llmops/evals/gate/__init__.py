"""The gate: what must hold of a candidate before a public name may move to it, and whether it does."""

from llmops.evals.gate.config import GateConfig, load_gate
from llmops.evals.gate.decide import baseline_of, check_gate, overall
from llmops.evals.gate.declare import declare_gates

__all__ = ["GateConfig", "baseline_of", "check_gate", "declare_gates", "load_gate", "overall"]
