"""How a cost grows with size: power laws, and what has a fixed part; pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Growth", "PowerLaw", "fit_growth", "fit_power_law"]

_SHARES = [0.0, *(step / 200 for step in range(1, 200))]  # of the least cost, that may be fixed


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """cost = factor * size ** exponent, the least squares line through the logarithms.

    worst: the largest |measured / fitted - 1| of the points. An exponent of 1 is linear cost.
    """

    exponent: float
    factor: float
    worst: float

    def at(self, size: float) -> float:
        """The cost that the law gives for a size."""
        return float(self.factor * size**self.exponent)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """cost = fixed + factor * size ** exponent. worst: as of a PowerLaw."""

    fixed: float
    exponent: float
    factor: float
    worst: float

    def at(self, size: float) -> float:
        """The cost that the law gives for a size."""
        return float(self.fixed + self.factor * size**self.exponent)


def fit_growth(points: Sequence[tuple[float, float]]) -> Growth:
    """Fit (size, cost) pairs of at least three different sizes: the fixed part that leaves the least deviation.

    What a stage costs however little there is to do hides how it grows: a linear stage with a fixed part looks less
    than linear, the more so the smaller the sizes. ValueError as fit_power_law, and for fewer sizes.
    """
    if len({size for size, _ in points}) < 3:
        raise ValueError(f"expected at least three different sizes, found {sorted({size for size, _ in points})}")
    least = min(cost for _, cost in points)
    fits = []
    for share in _SHARES:
        fixed = share * least
        law = fit_power_law([(size, cost - fixed) for size, cost in points])
        one = Growth(fixed=fixed, exponent=law.exponent, factor=law.factor, worst=0.0)
        fits.append(replace(one, worst=max(abs(cost / one.at(size) - 1) for size, cost in points)))
    return min(fits, key=lambda fit: fit.worst)


def fit_power_law(points: Sequence[tuple[float, float]]) -> PowerLaw:
    """Fit (size, cost) pairs of at least two different sizes; ValueError for fewer, and for values of 0 or less."""
    if any(not (math.isfinite(size) and math.isfinite(cost) and size > 0 and cost > 0) for size, cost in points):
        raise ValueError(f"expected sizes and costs above 0, found {list(points)}")
    if len({size for size, _ in points}) < 2:
        raise ValueError(f"expected at least two different sizes, found {sorted({size for size, _ in points})}")
    logs = [(math.log(size), math.log(cost)) for size, cost in points]
    mean_x = math.fsum(x for x, _ in logs) / len(logs)
    mean_y = math.fsum(y for _, y in logs) / len(logs)
    exponent = math.fsum((x - mean_x) * (y - mean_y) for x, y in logs) / math.fsum((x - mean_x) ** 2 for x, _ in logs)
    offset = mean_y - exponent * mean_x
    worst = max(abs(math.exp(y - offset - exponent * x) - 1) for x, y in logs)
    return PowerLaw(exponent=exponent, factor=math.exp(offset), worst=worst)
