"""Runs the sagas of the user's agents, and answers for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cdc_agent.config import Config
from cdc_agent.daemon.mail import Mail
from cdc_agent.daemon.threads import Threads
from cdc_agent.errors import CdcAgentError, JournalFull
from cdc_agent.health import Health
from cdc_agent.reactions.agents import Agents
from cdc_agent.reactions.context import Search
from cdc_agent.reactions.hands import Hands
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.sagas.context import SagaTools
from cdc_agent.sagas.operations import SagaOperations
from cdc_agent.sagas.runtime import SagaRuntime

__all__ = ["Sagas", "open_sagas"]

log = logging.getLogger(__name__)


class Sagas:
    """Safe to call from several threads. If carrying them on fails, it fails alone."""

    def __init__(
        self, runtime: SagaRuntime, operations: SagaOperations, *, mail: Mail, health: Health, hands: Hands
    ) -> None:
        self.operations = operations
        self._hands = hands
        self._runtime = runtime
        self._mail = mail
        self._health = health

    def start(self, threads: Threads) -> None:
        threads.start("saga-intake", lambda: self._guarded(self._runtime.run_intake), vital=False)
        threads.start("sagas", lambda: self._guarded(self._runtime.run), vital=False)

    def wake(self) -> None:
        """The process is to stop: nobody waits any longer for what might come."""
        self._mail.journal.wake()
        self._runtime.ring()

    def close(self) -> None:
        """After its threads have ended, or were left behind."""
        self._hands.close()

    def tell(self) -> None:
        """Metrics of what is now."""
        self._runtime.tell()

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except CdcAgentError as exc:
            log.error("sagas go on no more error=%s", exc)
            self._health.report("saga_runtime", exc)
        except Exception:
            # A bug: nobody else is to stop for it.
            log.exception("sagas go on no more")
            self._health.report("saga_runtime", "sagas go on no more", hint="the log says why; start again")


def open_sagas(
    config: Config, app: Agents, mail: Mail, *, search: Search, health: Health, stop: threading.Event
) -> Sagas | None:
    """None where no saga is declared and none ever began."""
    if not app.sagas and not mail.sagas.find(limit=1):
        return None
    retrier = Retrier(stop, health, Backoff(initial_s=config.retry.initial_s, maximum_s=config.retry.maximum_s))
    hands = Hands(config.state_dir / "sagas-in-hand.json")
    runtime = SagaRuntime(
        app.sagas,
        journal=mail.journal,
        desk=mail.desk,
        book=mail.sagas,
        health=health,
        stop=stop,
        tools=SagaTools(search=_asked(search), commands=app.commands),
        keep=lambda write: retrier.until_done("journal", write, (JournalFull,), once=True),
        in_hand=hands,
    )
    return Sagas(runtime, SagaOperations(mail.sagas, runtime), mail=mail, health=health, hands=hands)


def _asked(search: Search) -> Callable[..., Sequence[Any]]:
    def ask(collection: str, query: str, *, k: int, where: Mapping[str, Any] | None) -> Sequence[Any]:
        return search(collection, query, k, where, None)

    return ask
