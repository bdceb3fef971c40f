"""How a cost grows: a power law fitted to (size, cost) pairs; pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PowerLaw", "fit_power_law"]


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
