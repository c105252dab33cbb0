"""MQTT in: what a broker delivers becomes events in the journal, and is acknowledged only then."""
