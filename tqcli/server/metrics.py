"""Counters and histograms in Prometheus' text format."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
_REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Histogram:
    """Seconds, in buckets."""

    def __init__(self, name: str, what: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._what = what
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, seconds: float) -> None:
        """One more value. A bucket holds what is not greater than its bound."""
        with self._lock:
            self._counts[bisect_left(self._bounds, seconds)] += 1
            self._sum += seconds

    @property
    def mean(self) -> float:
        """Of all values; 0 where there are none."""
        with self._lock:
            number = sum(self._counts)
            return self._sum / number if number else 0.0

    def lines(self) -> list[str]:
        """As Prometheus reads it: each bucket counts those below it too."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines = [f"# HELP {self._name} {self._what}", f"# TYPE {self._name} histogram"]
        below = 0
        for bound, number in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            below += number
            lines.append(f'{self._name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{self._name}_sum {total:.6f}", f"{self._name}_count {below}"]


class Metrics:
    """What the server has done since it started."""

    def __init__(self) -> None:
        self.first_token = Histogram(
            "tq_time_to_first_token_seconds", "From the request to its first token.", _REQUEST_SECONDS
        )
        self.between_tokens = Histogram("tq_inter_token_latency_seconds", "From a token to the next.", _TOKEN_SECONDS)
        self.whole_request = Histogram(
            "tq_e2e_request_latency_seconds", "From the request to its last token.", _REQUEST_SECONDS
        )
        self._lock = threading.Lock()
        self._ended: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def request_ended(self, how: str) -> None:
        """how: stop, length, cancelled, failed, refused."""
        with self._lock:
            self._ended[how] += 1

    def count_tokens(self, kind: str, number: int) -> None:
        """kind: prompt or generation."""
        with self._lock:
            self._tokens[kind] += number

    def text(self, *, running: int, waiting: int) -> str:
        """Everything, for one scrape."""
        with self._lock:
            ended, tokens = dict(self._ended), dict(self._tokens)
        lines = [
            *_gauge("tq_num_requests_running", "Requests that are being answered.", running),
            *_gauge("tq_num_requests_waiting", "Requests that wait for their turn.", waiting),
            "# HELP tq_requests_total Requests that ended, by how.",
            "# TYPE tq_requests_total counter",
            *(f'tq_requests_total{{finished_reason="{how}"}} {number}' for how, number in sorted(ended.items())),
        ]
        for kind in ("prompt", "generation"):
            lines.append(f"# HELP tq_{kind}_tokens_total Tokens of the {kind}.")
            lines.append(f"# TYPE tq_{kind}_tokens_total counter")
            lines.append(f"tq_{kind}_tokens_total {tokens.get(kind, 0)}")
        for histogram in (self.first_token, self.between_tokens, self.whole_request):
            lines.extend(histogram.lines())
        return "\n".join(lines) + "\n"


def _gauge(name: str, what: str, value: int) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} gauge", f"{name} {value}"]
