"""cdc_agent keeps a vector index true to a Postgres database.

The package is read in the order in which a change meets its rooms: ``source``, ``capture``, ``stream``,
``agents``, ``documents``, ``embedding``, ``vectorstore``, with ``ledger`` beside them. ``docs/ARCHITECTURE.md``
is the map.
"""

__version__ = "0.1.0"
