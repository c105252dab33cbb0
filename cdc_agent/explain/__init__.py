"""Why a document is, or is not, in the index: what source, stream, ledger and store say of one row, and a verdict."""

from cdc_agent.explain.explainer import Explained, Explainer
from cdc_agent.explain.facts import Explanation
from cdc_agent.explain.verdict import State, Verdict

__all__ = ["Explained", "Explainer", "Explanation", "State", "Verdict"]
