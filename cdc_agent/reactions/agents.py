"""``Agents``: where a program of the user declares its agents."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, Unpack

from cdc_agent.errors import ConfigError
from cdc_agent.events import Event, Kind
from cdc_agent.reactions.agent import OPS, Agent, Fuse, Handler, Retries, Trigger
from cdc_agent.sagas.model import START, Saga

__all__ = ["Agents", "Options"]

F = TypeVar("F", bound=Handler)

_INTERVAL = re.compile(r"(\d{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
#: More often than this nobody could tell from a loop.
_LEAST_S = 0.1


class Options(TypedDict, total=False):
    """What every kind of agent may say; see ``Agent``. ``name`` is that of the function unless given."""

    name: str
    when: Callable[[Event], bool] | None
    key: Callable[[Event], str] | None
    retries: Retries
    timeout_s: float
    concurrency: int
    fuse: Fuse | None
    revisits: int
    from_start: bool


class Agents:
    """A set of agents::

        app = Agents()

        @app.on("payment_failed")
        def gather(event, context):
            context.command("offer_alternative_payment", {"order": event.key})

    Every decorated function is an agent of its own: with its own place in the stream, its own retries and its own dead
    letters. It is called with the event and a ``Context``, and may be a coroutine function.
    """

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}
        self._sagas: dict[str, Saga] = {}

    @property
    def agents(self) -> Mapping[str, Agent]:
        return self._agents

    @property
    def sagas(self) -> Mapping[str, Saga]:
        return self._sagas

    @property
    def commands(self) -> frozenset[str]:
        """Those that somebody carries out; to begin a saga is one, too."""
        triggers = (agent.trigger for agent in self._agents.values())
        carried_out = frozenset(t for trigger in triggers if trigger.kind is Kind.COMMAND for t in trigger.types)
        return carried_out | {f"{START}{name}" for name in self._sagas}

    @property
    def tables(self) -> frozenset[str]:
        """Those whose changes somebody listens to."""
        triggers = (agent.trigger for agent in self._agents.values())
        return frozenset(t for trigger in triggers if trigger.kind is Kind.CHANGE for t in trigger.types)

    def on(self, *types: str, **options: Unpack[Options]) -> Callable[[F], F]:
        """Handle facts of these types; a type may end in ``*``. All agents that listen to a fact hear of it."""
        return self._declared(Trigger(kind=Kind.FACT, types=_some(types, "on")), options)

    def on_change(
        self, table: str, *, ops: str = "cud", own: bool = False, **options: Unpack[Options]
    ) -> Callable[[F], F]:
        """Handle changes of the rows of ``schema.table``: created, updated, deleted, and (``t``) truncated.

        Changes that the agent itself wrote (``mark``) are left out unless ``own``.
        """
        schema, _, name = table.partition(".")
        if not schema or not name:
            raise ConfigError(f"on_change({table!r}) names no table", hint="write it with its schema: public.payments")
        if not ops or not set(ops) <= OPS:
            raise ConfigError(f"on_change(ops={ops!r}) names no changes", hint="some of c, u, d and t")
        return self._declared(Trigger(kind=Kind.CHANGE, types=(table,), ops=frozenset(ops), own=own), options)

    def command(self, type_: str, **options: Unpack[Options]) -> Callable[[F], F]:
        """Carry out commands of this type. Nobody else may."""
        if type_.endswith("*"):
            raise ConfigError(f"command({type_!r}) is a pattern", hint="one agent carries out one command: name it")
        if type_.startswith(START):
            raise ConfigError(f"command({type_!r}) begins a saga", hint="app.add(saga) is all that it takes")
        return self._declared(Trigger(kind=Kind.COMMAND, types=_some((type_,), "command")), options)

    def every(self, interval: float | str, **options: Unpack[Options]) -> Callable[[F], F]:
        """Be woken every so many seconds (or ``30s``, ``5m``, ``2h``, ``1d``). A time that passed while the daemon was
        down is made up for once."""
        seconds = _seconds(interval)

        def declare(function: F) -> F:
            name = options.get("name") or function.__name__
            return self._declared(Trigger(kind=Kind.TICK, types=(f"tick.{name}",)), options, every_s=seconds)(function)

        return declare

    def add(self, saga: Saga) -> None:
        """Let handlers start this saga."""
        if saga.name in self._sagas:
            raise ConfigError(f"there are two sagas named {saga.name}", hint="give each its own name")
        self._sagas[saga.name] = saga

    def _declared(self, trigger: Trigger, options: Options, **more: Any) -> Callable[[F], F]:
        def declare(function: F) -> F:
            known: dict[str, Any] = {"name": getattr(function, "__name__", ""), **options}
            agent = Agent(trigger=trigger, handler=function, **known, **more)
            self.take(agent)
            return function

        return declare

    def take(self, agent: Agent) -> None:
        """Add an agent that was declared elsewhere. Raises ``ConfigError`` for a second one of a name or command."""
        if agent.name in self._agents:
            raise ConfigError(f"there are two agents named {agent.name}", hint="give each its own name=")
        if agent.trigger.kind is Kind.COMMAND:
            [type_] = agent.trigger.types
            for other in self._agents.values():
                if other.trigger.kind is Kind.COMMAND and other.trigger.types == (type_,):
                    raise ConfigError(
                        f"{other.name} and {agent.name} both carry out {type_}", hint="a command has one agent"
                    )
        self._agents[agent.name] = agent


def _some(types: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not types or not all(isinstance(type_, str) and type_ for type_ in types):
        raise ConfigError(f"{where}() names no type", hint=f'write @app.{where}("payment_failed")')
    return types


def _seconds(interval: float | str) -> float:
    if isinstance(interval, str):
        found = _INTERVAL.fullmatch(interval)
        if found is None:
            raise ConfigError(f"every({interval!r}) is no interval", hint="seconds, or 30s, 5m, 2h, 1d")
        return float(found[1]) * _SECONDS[found[2]]
    if interval < _LEAST_S:
        raise ConfigError(f"every({interval}) is too often", hint=f"{_LEAST_S} seconds or more")
    return float(interval)
