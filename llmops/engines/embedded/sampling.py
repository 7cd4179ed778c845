"""How one row picks its next token, and the log-probabilities that are reported with it.

The order of operations and the defaults are vLLM's (temperature, min_p, top_k, top_p, draw), so that the same
request means the same distribution on both engines. Log-probabilities are those of the raw model in fp32,
before temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy (vLLM's `_SAMPLING_EPS`)."""


@dataclass(frozen=True)
class Sampling:
    """How one row generates. `n_logprobs` None reports none; 0 reports the chosen token alone.

    `grammar` is what the answer must look like, see `grammar`.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    n_logprobs: int | None = None
    n_prompt_logprobs: int | None = None
    grammar: str | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW

    def for_answer(self, nth: int) -> Sampling:
        """Return the sampling of the nth of `n` answers: seeds count up, so that they differ and repeat."""
        return self if self.seed is None or nth == 0 else replace(self, seed=self.seed + nth)


@dataclass(frozen=True)
class TokenLogprob:
    """One token with its log-probability and the most likely alternatives, best first.

    `logprob` is None where none was asked for, and for the first prompt token, which nothing precedes.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def make_generator(seed: int | None, device: torch.device) -> torch.Generator:
    """Return a row's own random stream: equal seeds draw equal tokens whatever else is in the batch."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def pick_tokens(
    logits: torch.Tensor, samplings: list[Sampling], generators: list[torch.Generator]
) -> list[int]:
    """Return the next token id of each row; `logits` is fp32 [B, V]."""
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    for row, sampling in enumerate(samplings):
        if not sampling.greedy:
            chosen[row] = _draw(logits[row], sampling, generators[row])
    return chosen


def _draw(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw one token id from [V] logits after temperature, min_p, top_k and top_p."""
    scaled = logits / max(sampling.temperature, 1e-2)
    if sampling.min_p > 0.0:
        probs = scaled.softmax(-1)
        scaled = scaled.masked_fill(probs < sampling.min_p * probs.max(), -torch.inf)
    if 0 < sampling.top_k < scaled.numel():
        kth_best = scaled.topk(sampling.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < kth_best, -torch.inf)
    probs = scaled.softmax(-1)
    if sampling.top_p < 1.0:
        probs = _nucleus(probs, sampling.top_p)
    return int(torch.multinomial(probs, 1, generator=generator).item())


def _nucleus(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of most likely tokens whose mass reaches `top_p`; never empties."""
    ordered, order = probs.sort(descending=True)
    mass_before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(mass_before >= top_p, 0.0)
    return torch.zeros_like(probs).scatter_(0, order, ordered)


def logprobs_of(logits: torch.Tensor, token_ids: list[int], n_top: int) -> list[TokenLogprob]:
    """Return the log-probability of `token_ids` [N] under fp32 `logits` [N, V], with the `n_top` best."""
    logprobs = logits.log_softmax(-1)
    index = torch.tensor(token_ids, device=logits.device).unsqueeze(1)
    chosen: list[float] = logprobs.gather(1, index).squeeze(1).tolist()
    if n_top == 0:
        return [TokenLogprob(t, lp) for t, lp in zip(token_ids, chosen, strict=True)]
    best = logprobs.topk(min(n_top, logprobs.shape[-1]), dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(t, lp, tuple(zip(ids, values, strict=True)))
        for t, lp, (ids, values) in zip(token_ids, chosen, tops, strict=True)
    ]
