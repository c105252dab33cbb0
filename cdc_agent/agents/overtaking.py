"""Changes that need no model go ahead of those that wait for one.

Who may no longer see a document must not wait until thousands of others are embedded. While a batch is being embedded
the indexer looks further along the stream for changes that only move metadata or take a document away, and writes
them. Nothing is reordered within a document: one that has an earlier change in front of it waits its turn. When the
indexer comes to a change that went ahead, it is older than what the manifest says, and so it is skipped; the checkpoint
stays before everything that was passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cdc_agent.agents.batch import BatchFolder, is_wide
from cdc_agent.agents.planning import Collection, Plan, light_plan
from cdc_agent.documents.model import document_id
from cdc_agent.errors import StreamUnavailable
from cdc_agent.events import ChangeEvent, Op
from cdc_agent.ledger.base import Manifest
from cdc_agent.stream.base import Stream

__all__ = ["Overtaking"]

#: Events looked at in one round.
_PAGE = 500
#: Documents remembered as having to wait, and events kept to be judged again, before we look no further.
_MOST_BLOCKED, _MOST_KEPT = 50_000, 500

#: A document of a collection.
Place = tuple[str, str]


class Overtaking:
    """Looks ahead of the planner, and is used by it alone. ``tainted``: chunks that must not be written in place."""

    def __init__(
        self,
        *,
        stream: Stream,
        folder: BatchFolder,
        tainted: Callable[[Manifest | None], frozenset[str]],
    ) -> None:
        self._stream = stream
        self._folder = folder
        self._tainted = tainted
        self.clear()

    def clear(self) -> None:
        """Look again from where the planner is."""
        self._front = self._seen = 0
        #: Documents with a change ahead that must wait its turn, and the offset of the last one.
        self._blocked: dict[Place, int] = {}
        #: Changes of documents that are in hand, in order; they are judged once their document is not.
        self._kept: dict[Place, list[ChangeEvent]] = {}
        #: Nothing behind this event may be looked at before it is dealt with; 0 when there is none.
        self._wall = 0

    def plans(self, front: int, in_hand: Callable[[Place], bool]) -> list[Plan]:
        """What may be written now of the changes behind offset ``front``, at most one plan for each document.

        Hand them over before asking again. ``in_hand``: the planner is at work on the document, or has put it off.
        """
        if front != self._front:
            self._pass(front)
        made: dict[Place, Plan] = {}
        self._judge_kept(in_hand, made)
        for event in self._events():
            if not self._take(event, in_hand, made):
                break
            self._seen = event.offset
        return list(made.values())

    def _pass(self, front: int) -> None:
        """The planner deals with everything up to ``front`` itself."""
        self._front, self._seen = front, max(front, self._seen)
        if self._wall <= front:
            self._wall = 0
        self._blocked = {place: offset for place, offset in self._blocked.items() if offset > front}
        kept = {place: [event for event in events if event.offset > front] for place, events in self._kept.items()}
        self._kept = {place: events for place, events in kept.items() if events}

    def _events(self) -> Sequence[ChangeEvent]:
        if self._wall or len(self._blocked) >= _MOST_BLOCKED or sum(map(len, self._kept.values())) >= _MOST_KEPT:
            return ()
        try:
            return self._stream.read(self._seen, limit=_PAGE, wait_s=0).events
        except StreamUnavailable:
            # Who reads in order waits for its server, and tells of it.
            return ()

    def _judge_kept(self, in_hand: Callable[[Place], bool], made: dict[Place, Plan]) -> None:
        """The oldest change of each document that is in hand no more."""
        for place in [place for place in self._kept if not in_hand(place)]:
            first, *later = self._kept.pop(place)
            self._judge(first, place, made)
            if later and place in self._blocked:
                self._blocked[place] = later[-1].offset
            elif later:
                self._kept[place] = later

    def _take(self, event: ChangeEvent, in_hand: Callable[[Place], bool], made: dict[Place, Plan]) -> bool:
        """Look at one change; False when it and what is behind it may not be looked at yet."""
        if is_wide(event):
            self._wall = event.offset
            return False
        if event.op in (Op.MESSAGE, Op.READ):
            # What a resync read and what changed come to the same in either order.
            return True
        for collection in self._folder.collections_of(event):
            places = [(collection.name, document) for document in _documents(collection, event)]
            if not places:
                self._wall = event.offset
                return False
            if any(place in made for place in places):
                return False
            if len(places) > 1 or event.op is Op.CREATE or places[0] in self._blocked:
                self._blocked.update(dict.fromkeys(places, event.offset))
            elif in_hand(places[0]) or places[0] in self._kept:
                self._kept.setdefault(places[0], []).append(event)
            else:
                self._judge(event, places[0], made)
        return True

    def _judge(self, event: ChangeEvent, place: Place, made: dict[Place, Plan]) -> None:
        """A change with nothing of its document in front of it: it may go ahead, has no effect, or waits its turn."""
        collection = self._folder.collection(place[0])
        pending = self._folder.alone(collection, event)
        if pending is None:
            return
        plan = light_plan(collection, pending, tainted=self._tainted(pending.base))
        if plan is None:
            self._blocked[place] = event.offset
        elif plan.deleted or plan.moved:
            made[place] = plan


def _documents(collection: Collection, event: ChangeEvent) -> Mapping[str, None]:
    """The ids of the documents that a change concerns; none when the change does not say."""
    keys = [row.key() for row in (event.before, event.after) if row is not None]
    return {document_id(collection.table, key): None for key in keys if key is not None}
