"""Sagas: several steps in the world of which either all are done, or what was done is undone. They survive anything."""

from cdc_agent.sagas.context import StepContext
from cdc_agent.sagas.model import Approval, Refused, Saga, Step

__all__ = ["Approval", "Refused", "Saga", "Step", "StepContext"]
