"""``token``: a bearer token for the HTTP interface, and the lines of the tokens file that let it in."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from cdc_agent.cli.options import json_object
from cdc_agent.cli.output import print_json, wants_json
from cdc_agent.errors import UsageError

__all__ = ["add_options", "new"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="who will use it; logs and refusals call it so")
    parser.add_argument(
        "--scopes",
        default="search",
        metavar="LIST",
        help="what it is for: search, metrics, events, admin (default: search)",
    )
    parser.add_argument(
        "--where", type=json_object, metavar="JSON", help="see only records with this metadata, such as one tenant's"
    )
    parser.add_argument("--file", type=Path, help="append the entry to this tokens file, which is made if need be")


def new(args: argparse.Namespace) -> int:
    """The token is shown once: the entry holds its digest only."""
    from cdc_agent.web.tokens import entry, new_token

    token = new_token()
    scopes = [scope.strip() for scope in args.scopes.split(",")]
    lines = entry(token, name=args.name, scopes=scopes, where=args.where)
    if args.file is not None:
        _append(args.file, lines)
    if wants_json(args):
        print_json({"token": token, "entry": lines, "file": None if args.file is None else str(args.file)})
        return 0
    print(f"token (shown once): {token}")
    if args.file is None:
        print(f"\nlines for http.tokens_file:\n{lines}", end="")
    else:
        print(f"written to {args.file}; a running daemon reads it again on SIGHUP")
    return 0


def _append(path: Path, lines: str) -> None:
    """The file as it will be is read before it takes the place of the old one, and that happens at once."""
    from cdc_agent.web.tokens import parse_tokens

    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text + ("\n" if text and not text.endswith("\n") else "") + lines
        _refuse_plain(path, text)
        parse_tokens(whole, f"--file: {path}")
        try:
            with _private(fresh) as file:
                file.write(whole)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise UsageError(f"--file: {path} cannot be written: {reason}", hint="check the path") from exc


def _refuse_plain(path: Path, text: str) -> None:
    from cdc_agent.web.tokens import is_list

    if text.strip() and not is_list(text):
        raise UsageError(
            f"--file: {path} has one token a line, and this one would have a name and scopes",
            hint="use another file, or make its tokens entries of a list (docs/CONFIG.md)",
        )


def _private(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w", encoding="utf-8")
