"""Messages that were refused: counted one by one, logged in summary so that a flood of them cannot flood the log."""

from __future__ import annotations

from lighttts.broker.instructions import Metric, Step

REPORT_INTERVAL_S = 5.0


class Refusals:
    """Counts refused messages by reason."""

    def __init__(self, step: Step, now: float) -> None:
        self._step = step
        self._reported = now - REPORT_INTERVAL_S
        self._unreported = 0
        self._latest = ""

    def add(self, why: str, text: str) -> None:
        """One message was refused because of `why` (malformed, wrong_role, unknown, stale_epoch, stale_attempt)."""
        self._unreported += 1
        self._latest = text
        self._step.observe(Metric.REFUSED, label=why)

    def tick(self, now: float) -> None:
        """Logs how many there were and the latest one's text, now and then."""
        if self._unreported and now - self._reported >= REPORT_INTERVAL_S:
            self._step.log("warning", "messages refused", count=self._unreported, latest=self._latest)
            self._unreported = 0
            self._reported = now
