"""``explain``: why a row is, or is not, in the index. Exit code 0 when a search finds it as it is now, else 1."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from cdc_agent.cli import options
from cdc_agent.cli.daemon_client import DaemonClient
from cdc_agent.cli.output import print_json, wants_json
from cdc_agent.documents.model import document_id

__all__ = ["add_options", "run"]

_EXCERPT_CHARACTERS = 70
#: The daemon looks twice, and waits between.
_ANSWER_S = 40.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", help="name of the collection")
    parser.add_argument(
        "key", type=options.key, help="the row's key, several columns as JSON list, or a document's id as hits carry it"
    )


def run(args: argparse.Namespace) -> int:
    # A document's id without its table is the key as ids spell it.
    key = document_id("", tuple(args.key))[1:]
    path = f"/documents/{quote(args.collection, safe='')}/{quote(key, safe='')}"
    facts = DaemonClient.of(args.config).get(path, timeout_s=_ANSWER_S)
    if wants_json(args):
        print_json(facts)
    else:
        _print(facts)
    return 0 if facts["verdict"]["state"] == "indexed" else 1


def _print(facts: dict[str, Any]) -> None:
    verdict = facts["verdict"]
    print(f"{facts['document_id']}  {verdict['state'].replace('_', ' ')}")
    print(verdict["sentence"])
    if verdict["remedy"]:
        print(f"remedy: {verdict['remedy']}")
    print()
    for name, lines in _sections(facts):
        for number, line in enumerate(lines):
            print(f"{name if number == 0 else '':11}{line}")


def _sections(facts: dict[str, Any]) -> list[tuple[str, list[str]]]:
    progress, generation = facts["progress"], facts["generation"]
    return [
        ("row", [_row(facts)]),
        ("index", _index(facts["index"])),
        ("pending", _pending(facts["pending"], progress)),
        ("resync", [_resync(resync) for resync in facts["resyncs"]]),
        ("dead letter", _letter(facts["dead_letter"])),
        ("watermark", [f"applied {progress['applied_lsn']}, captured {progress['captured_lsn']}"]),
        ("generation", [f"{generation['number']} of {facts['collection']}, {generation['model']}"]),
    ]


def _row(facts: dict[str, Any]) -> str:
    row = facts["row"]
    if row["exists"] is None:
        return f"unknown: {row['error']}"
    if not row["exists"]:
        return f"none in {facts['table']}"
    if row["error"]:
        return f"in {facts['table']}; {row['error']}"
    where = f", where ({facts['where']}): {'yes' if row['matches'] else 'no'}" if facts["where"] else ""
    chunks = "" if row["chunks"] is None else f", {row['chunks']} chunks"
    return f"in {facts['table']}{where}{chunks}"


def _index(index: dict[str, Any] | None) -> list[str]:
    if index is None:
        return ["nothing"]
    if index["deleted"]:
        return [f"removed at {index['commit_lsn']}"]
    how = "read from the table" if index["read_from_table"] else "from the log"
    return [f"version {index['version']}, {how}", *(_chunk(chunk) for chunk in index["chunks"])]


def _chunk(chunk: dict[str, Any]) -> str:
    if not chunk["present"]:
        missing = "missing in the store" if chunk["present"] is False else "the store does not answer"
        return f"{chunk['position']}  {chunk['id']}  {missing}"
    written = f"written {chunk['written_at']}" if chunk["written_at"] else f"committed {chunk['commit_ts']}"
    return f"{chunk['position']}  {chunk['id']}  {written}  {_excerpt(chunk['text'] or '')}"


def _resync(resync: dict[str, Any]) -> str:
    return f"{resync['id']} {resync['state']}, {resync['rows_done']} of about {resync['rows_estimated']} rows"


def _pending(changes: list[dict[str, Any]], progress: dict[str, Any]) -> list[str]:
    if changes:
        return [f"{c['op']} at {c['commit_lsn']}, offset {c['offset']}" for c in changes]
    if progress["examined"] < progress["waiting"]:
        return [f"none in the first {progress['examined']} of {progress['waiting']} entries that wait"]
    return [f"none of {progress['waiting']} entries that wait"]


def _letter(letter: dict[str, Any] | None) -> list[str]:
    return [] if letter is None else [f"{letter['id']}  {letter['reason']}: {letter['error']} ({letter['parked_at']})"]


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT_CHARACTERS else line[: _EXCERPT_CHARACTERS - 1] + "…"
