"""The kill loop behind ``scripts/chaos``: writers, faults, and observers that hold the daemon to its word meanwhile."""
