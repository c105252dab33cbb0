"""cdc_agent keeps a vector index true to a Postgres database.

The package is read in the order in which a change meets its rooms: ``source``, ``capture``, ``stream``,
``agents``, ``documents``, ``embedding``, ``vectorstore``, with ``ledger`` beside them. ``docs/ARCHITECTURE.md``
is the map.
"""

__version__ = "0.1.0"

__all__ = ["Agents", "Context", "Event", "Fuse", "Park", "Retries", "mark"]


def __getattr__(name: str) -> object:
    """What programs of agents import, loaded when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("cdc_agent.events" if name == "Event" else "cdc_agent.reactions"), name)
