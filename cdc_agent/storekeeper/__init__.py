"""The store must be ours, whole and readable. ``guard`` names what is not so and builds a collection again, ``watch``
looks every now and then, ``salvage`` saves the vectors of a collection whose ledger is lost."""

from cdc_agent.storekeeper.guard import STORE_STATES, Kept, StoreGuard, store_damaged
from cdc_agent.storekeeper.watch import StoreWatch

__all__ = ["STORE_STATES", "Kept", "StoreGuard", "StoreWatch", "store_damaged"]
