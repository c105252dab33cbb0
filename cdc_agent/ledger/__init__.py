"""The durable state of agents: offsets, manifests, intents, garbage, dead letters, resyncs."""
