"""The user's own agents: functions that react to events, commands, changed rows and the clock, each event once."""

from cdc_agent.reactions.agent import Fuse, Retries
from cdc_agent.reactions.agents import Agents
from cdc_agent.reactions.context import Context, Park
from cdc_agent.reactions.origin import mark, origin_of

__all__ = ["Agents", "Context", "Fuse", "Park", "Retries", "mark", "origin_of"]
