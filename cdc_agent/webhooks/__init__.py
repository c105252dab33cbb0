"""Webhooks in: a signature proves who sent a delivery, and what it says becomes events. Pure but for ``secrets``."""
