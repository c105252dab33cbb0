"""The configuration that a command names, read when it is wanted: what checks it takes longer to load than `--help`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc_agent.config import Config

__all__ = ["load"]


def load(path: str) -> Config:
    """Raises ``ConfigError``."""
    from cdc_agent.config import load as load_config

    return load_config(path)
