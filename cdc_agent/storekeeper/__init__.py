"""The store must be ours, whole and readable. ``guard`` names what is not so and builds a collection again, ``watch``
looks every now and then, ``reach`` finds what no search finds, ``salvage`` saves the vectors of a collection whose
ledger is lost."""

from cdc_agent.storekeeper.guard import STORE_STATES, Kept, StoreGuard, store_damaged
from cdc_agent.storekeeper.reach import Reach, Reached
from cdc_agent.storekeeper.watch import StoreWatch

__all__ = ["STORE_STATES", "Kept", "Reach", "Reached", "StoreGuard", "StoreWatch", "store_damaged"]
