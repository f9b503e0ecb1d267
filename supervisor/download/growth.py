"""How many connections a file gets: more while that brings more. Pure."""

from __future__ import annotations

from dataclasses import dataclass

INTERVAL_S = 0.25
SETTLE_S = 0.1  # the first moments of new connections say little of what they bring
# So little for one connection looks like a server's limit, not like the end of the network:
# then the second that careful doubling takes is lost.
MODEST_BYTES_PER_S = 40_000_000
FACTOR = 1.1  # more connections must bring so much, or their number stays
HELD_STEPS = 4
PROBE_STEPS = 2  # far servers need a moment to gather speed
PAUSE_S = 5.0


@dataclass(slots=True)
class Growth:
    """The target number of connections, from the throughput they brought so far.

    It doubles while that pays, and goes up eightfold while each brings little. Then, once a
    second, a quarter more is tried, because the first seconds may have been a burst. What
    brings nothing is taken back: where the network is not the limit, each connection more
    only costs CPU.
    """

    most: int
    target: int
    best: float = 0.0
    at_s: float = 0.0
    fetched: int = 0
    held: int = 0
    settled: bool = False
    before_probe: int | None = None

    def step(self, now_s: float, fetched: int, *, saturated: bool) -> None:
        """Look at the bytes ``fetched`` since the last step; ``saturated``: all are busy."""
        elapsed_s = now_s - self.at_s
        if elapsed_s < (INTERVAL_S if self.settled else SETTLE_S) or not saturated:
            return
        rate = (fetched - self.fetched) / elapsed_s
        self.at_s, self.fetched = now_s, fetched
        modest = rate < self.target * MODEST_BYTES_PER_S
        if not self.settled and (self.best or not modest):
            self.settled = True
        elif rate > self.best * FACTOR:
            self.best, self.held, self.before_probe = rate, 0, self.target
            self._try(self.target * (8 if modest else 2))
        elif self.before_probe is not None and self.held < PROBE_STEPS - 1:
            self.held += 1
        elif self.before_probe is not None:
            self.target, self.before_probe, self.held = self.before_probe, None, 0
        elif self.held >= HELD_STEPS and self.target < self.most:
            self.best, self.before_probe, self.held = rate, self.target, 0
            self._try(self.target + max(1, self.target // 4))
        else:
            self.held += 1

    def _try(self, target: int) -> None:
        self.target, self.settled = min(self.most, target), False

    def bound(self, most: int) -> None:
        """Other files want their share, or want none any more."""
        self.most, self.target = most, min(self.target, most)
        if self.before_probe is not None:
            self.before_probe = min(self.before_probe, most)

    def shrink(self, now_s: float) -> None:
        """The host is overloaded: half as many, and no growth for a while."""
        self.target, self.at_s = max(1, self.target // 2), now_s + PAUSE_S
        self.before_probe, self.held = None, 0
