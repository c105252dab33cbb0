"""Values of options, read and refused with a sentence."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from cdc_agent.lsn import Lsn

__all__ = ["OFFLINE", "json_object", "key", "lsn", "seconds"]

#: The help of ``--offline``, wherever there is one.
OFFLINE = "when no daemon answers: run one here until it is done, then stop it"


def lsn(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 300:
        raise argparse.ArgumentTypeError(f"not a number of seconds from 0 to 300: {text!r}")
    return value


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f'not JSON ({exc}); an example: \'{{"lang": "en"}}\'') from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object; an example: \'{"lang": "en"}\'')
    return value


def key(text: str) -> list[str]:
    """``42``, or a JSON list of several columns: ``["a", "7"]``."""
    if not text.lstrip().startswith("["):
        return [text]
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f'not a JSON list ({exc}); an example: \'["a", "7"]\'') from None
    return [str(part) for part in value]
