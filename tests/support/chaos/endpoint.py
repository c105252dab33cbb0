"""The embedding endpoint of a run: fails when told to, and knows when and for whom each text was embedded.

Each life of a daemon has a key of its own. What a life asked for that is over is often read, on a busy machine, when
the next one has begun: it does not count against that one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass

from tests.support.fake_openai import FakeOpenAI, Fault, Request

__all__ = ["QUERY", "Endpoint"]

#: What every query begins with. Queries are never made to fail: they are not what is embedded for good.
QUERY = "find:"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Embedded:
    life: str | None
    disturbances: int
    at_s: float


class Endpoint(FakeOpenAI):
    """Counts texts that were embedded again though nothing had happened in between."""

    def __init__(self) -> None:
        super().__init__()
        self._noting = threading.Lock()
        #: Raised by whoever disturbs: a daemon that died may not have kept what it was given.
        self.disturbances = 0
        self._embedded_in: dict[str, _Embedded] = {}
        self.embedded = 0
        self.again = 0
        #: By a life of the daemon that was over, or after one: nobody's fault.
        self.again_for_another = 0
        self.again_undisturbed: list[str] = []

    def disturb(self) -> None:
        with self._noting:
            self.disturbances += 1

    def take(self, request: Request) -> Fault:
        if request.texts and request.texts[0].startswith(QUERY):
            return Fault(kind="none")
        fault = super().take(request)
        if fault.kind != "none":
            self.disturb()
        return fault

    def note_success(self, request: Request) -> None:
        with self._noting:
            for text in request.texts:
                if text.startswith(("T ", "L ")):
                    self._note(text, request.authorization)

    def _note(self, text: str, life: str | None) -> None:
        self.embedded += 1
        now = _Embedded(life=life, disturbances=self.disturbances, at_s=time.monotonic())
        before = self._embedded_in.get(text)
        if before is not None:
            self.again += 1
            # One disturbance may reach into the time before and behind it.
            if self.disturbances == before.disturbances:
                self._note_undisturbed(text, before, now)
        self._embedded_in[text] = now

    def _note_undisturbed(self, text: str, before: _Embedded, now: _Embedded) -> None:
        if now.life == before.life:
            self.again_undisturbed.append(f"{text[:40]!r} of {now.life}, {now.at_s - before.at_s:.2f} s later")
        else:
            self.again_for_another += 1

    def wait_for_release(self) -> None:
        """A request that hangs is let go of after a while, longer than anybody waits for it."""
        self._released.wait(4.0)

    def forget(self) -> Counter[str]:
        """Free what nobody will ask for any more; a long run sends many texts."""
        with self._lock:
            seen, self.texts_seen, self.requests = self.texts_seen, Counter(), []
        return seen
