"""Postgres becomes transactions of changes. Nothing here knows what happens to them afterwards."""
