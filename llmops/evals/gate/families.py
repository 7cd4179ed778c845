"""Several tests at once: p-values adjusted for how many there are, and error spent over declared looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the chance of any false rejection, whatever the tests' dependence (Holm 1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _back(np.minimum(steps, 1.0), order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the share of false ones among the rejections (Benjamini and Hochberg 1995).

    >>> [round(p, 3) for p in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _back(np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1.0), order)


def _back(adjusted: np.ndarray, order: np.ndarray) -> list[float]:
    found = np.empty_like(adjusted)
    found[order] = adjusted
    return [float(x) for x in found]


def look_levels(looks: Sequence[int], level: float) -> list[float]:
    """Confidence of each bound at each look, so that over all of them the error is 1 - `level`.

    O'Brien-Fleming-type spending (Lan and DeMets 1983): alpha(t) = 2 - 2 Phi(z / sqrt(t)), z = Phi^-1(1 - alpha / 2),
    with t the share of the last look's items; bounds by recursive integration (Armitage, McPherson and Rowe 1969).

    >>> [round(level, 4) for level in look_levels([50, 100], 0.975)]
    [0.9985, 0.9755]
    """
    times = np.asarray(looks, dtype=np.float64) / looks[-1]
    z = special.ndtri(1 - (1 - level) / 2)
    spent = 2 - 2 * special.ndtr(z / np.sqrt(times))
    levels, grid, density = [], np.zeros(1), np.ones(1)
    for k, t in enumerate(times):
        step = np.sqrt(t - (times[k - 1] if k else 0.0))
        bound = _bound(grid, density, step, spent[k] - (spent[k - 1] if k else 0.0))
        levels.append(float(special.ndtr(bound / np.sqrt(t))))
        grid, density = _moved(grid, density, step, bound)
    return levels


def _bound(grid: np.ndarray, density: np.ndarray, step: float, spend: float) -> float:
    """Where the sum's tail has just the probability to be spent, by bisection."""
    low, high = -9.0, 9.0
    for _ in range(80):
        middle = (low + high) / 2
        beyond = _integral(density * special.ndtr((grid - middle) / step), grid)
        low, high = (middle, high) if beyond > spend else (low, middle)
    return high


def _moved(grid: np.ndarray, density: np.ndarray, step: float, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """The density of the sum one step on, of those that have not crossed the bound."""
    new = np.linspace(-9.0, bound, 1001)
    kernel = np.exp(-(((new[:, None] - grid[None, :]) / step) ** 2) / 2) / (step * np.sqrt(2 * np.pi))
    return new, np.array([_integral(density * row, grid) for row in kernel])


def _integral(values: np.ndarray, grid: np.ndarray) -> float:
    return float(values[0]) if len(grid) == 1 else float(np.trapezoid(values, grid))
