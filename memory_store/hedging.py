"""When a call that is late is sent to a second copy as well: a delay taken from the live latencies; pure."""

from collections import deque
from dataclasses import dataclass

import numpy as np

__all__ = ["HedgePolicy", "Latencies"]

_REMEMBERED = 512
_ENOUGH = 32  # latencies, before their quantile says anything
_RECKON_EVERY = 16
_LEAST_LOOK_S = 1e-4  # a shorter wait may end before the clock has moved


@dataclass(frozen=True, kw_only=True)
class HedgePolicy:
    """A second request goes out when the first takes longer than most did (Dean and Barroso 2013, "The Tail at Scale").

    quantile: of the live latencies, after which a call counts as late. least_delay_s: never sooner. first_delay_s: the
    delay while little is known. share: of the calls that may be sent twice, so that a busy machine does not get twice
    the work; a call that is `patience` times as late is sent again whatever the share.
    """

    quantile: float = 0.95
    least_delay_s: float = 0.002
    first_delay_s: float = 0.25
    share: float = 0.1
    patience: float = 4.0


class Latencies:
    """How long the calls of one kind took lately, and whether one more may be sent twice."""

    def __init__(self, policy: HedgePolicy) -> None:
        self.policy = policy
        self.delay_s = policy.first_delay_s
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._since_reckoned = 0
        self._owed = 1.0

    def add(self, seconds: float) -> None:
        """Count a call that was answered, from its first request to the first answer."""
        self._seconds.append(seconds)
        self._owed = min(self._owed + self.policy.share, 10.0)
        self._since_reckoned += 1
        if len(self._seconds) >= _ENOUGH and self._since_reckoned >= _RECKON_EVERY:
            self._since_reckoned = 0
            self.delay_s = max(self.policy.least_delay_s, float(np.quantile(self._seconds, self.policy.quantile)))

    def may_hedge(self, waited_s: float) -> bool:
        """Whether a call that has waited so long is to be sent again now; if so, it is counted."""
        if waited_s < self.delay_s:
            return False
        if self._owed >= 1.0:
            self._owed -= 1.0
            return True
        return waited_s >= self.delay_s * self.policy.patience

    def next_look_s(self, waited_s: float) -> float:
        """Seconds until it is worth asking `may_hedge` again."""
        late_s = self.delay_s if waited_s < self.delay_s else self.delay_s * self.policy.patience
        return max(_LEAST_LOOK_S, late_s - waited_s)
