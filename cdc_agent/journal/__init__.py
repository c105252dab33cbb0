"""Events that did not come from a watched table, each once, in order, kept for ever: webhook deliveries and facts."""
