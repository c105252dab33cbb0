"""The durable log between capture and agents."""
