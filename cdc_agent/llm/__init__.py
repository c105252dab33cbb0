"""A language model as a step of a handler: ``Llm`` asks a chat endpoint, within a time and a budget, and records it."""

from cdc_agent.llm.chat import Llm

__all__ = ["Llm"]
