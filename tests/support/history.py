"""What a scripted table has been, commit by commit: the judge of an index at any moment, not only in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cdc_agent.events import Transaction
from cdc_agent.ledger.base import Manifest
from cdc_agent.lsn import Lsn, Version
from cdc_agent.snapshot import Snapshot
from tests.support.scripted import ScriptedDatabase, Statement, Values

__all__ = ["History", "Move"]


@dataclass(frozen=True)
class _Moment:
    """One row as one change of one transaction left it."""

    version: Version
    end_lsn: Lsn
    xid: int
    values: Values | None


@dataclass(frozen=True)
class Move:
    """A row that got another key, and stayed in its partition."""

    old: str
    new: str
    version: Version


class History:
    """Learns of every commit as it is made."""

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self._rows: dict[str, tuple[Values, int]] = {}
        self._moments: dict[str, list[_Moment]] = {}

    def commit(self, database: ScriptedDatabase, statements: Sequence[Statement], tx: Transaction) -> None:
        ordinal = 0
        for statement in statements:
            before = dict(self._rows)
            changes = database._change(statement, self._rows, ordinal + 1)
            ordinal += len(changes)
            to = statement.values[0] if statement.values is not None else statement.key
            # A row that goes to another partition as well is deleted and inserted, as far as the log can say.
            if statement.kind == "update" and to != statement.key and len(changes) == 1:
                self.moves.append(Move(statement.key, to, Version(tx.commit_lsn, ordinal)))
            for key in before.keys() | self._rows.keys():
                if before.get(key) != self._rows.get(key):
                    self._note(key, Version(tx.commit_lsn, ordinal), tx)

    def _note(self, key: str, version: Version, tx: Transaction) -> None:
        values = self._rows[key][0] if key in self._rows else None
        moment = _Moment(version, tx.end_lsn or Lsn(0), tx.xid, values)
        self._moments.setdefault(key, []).append(moment)

    @property
    def keys(self) -> list[str]:
        return sorted(self._moments)

    def at(self, key: str, manifest: Manifest) -> Values | None:
        """The row that a manifest says it was made of: as a change left it, or as a snapshot saw it."""
        if manifest.snapshot is not None:
            sees = Snapshot.parse(manifest.snapshot).sees
            return self._last(key, lambda moment: sees(moment.xid))
        return self._last(key, lambda moment: moment.version <= manifest.version)

    def _last(self, key: str, wanted: Callable[[_Moment], bool]) -> Values | None:
        found = [moment.values for moment in self._moments.get(key, ()) if wanted(moment)]
        return found[-1] if found else None

    def stayed(self, move: Move) -> Values | None:
        """The row as it moved, None if it left its new key again later."""
        moments = [moment for moment in self._moments[move.new] if moment.version >= move.version]
        return moments[0].values if all(moment.values is not None for moment in moments) else None

    def since(self, key: str, lsn: Lsn) -> list[Values | None]:
        """Every state of a row that an index which is complete up to ``lsn`` may show."""
        moments = self._moments.get(key, [])
        older = [moment.values for moment in moments if moment.end_lsn <= lsn]
        newer = [moment.values for moment in moments if moment.end_lsn > lsn]
        return [older[-1] if older else None, *newer]
