"""The write protocol (``agents.writing``, ``ledger``) as a model: one document, six versions of it.

What can happen: a crash at every step; a request to the store that is applied, lost, or lands late, whether we died
or only got no answer; any batching of versions; the next batch planned while one is being written. The rules switched
off by ``Rules`` are those that the protocol stands on; without any one of them the explorer finds a way to a wrong
index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from tests.model.explorer import Model

#: The document after each version: its chunk texts and its metadata. It is born, moves its metadata alone, its text
#: alone, both, goes, and comes back smaller.
VERSIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((), ""),
    (("a", "b"), "m1"),
    (("a", "b"), "m2"),
    (("a", "x"), "m2"),
    (("a", "b"), "m1"),
    ((), ""),
    (("b",), "m2"),
)
LAST = len(VERSIONS) - 1

ChunkId: TypeAlias = "tuple[object, ...]"
Chunks: TypeAlias = "tuple[tuple[ChunkId, str], ...]"
#: What the store holds: id, text, metadata.
Stored: TypeAlias = "frozenset[tuple[ChunkId, str, str]]"
Step: TypeAlias = Literal["idle", "begin", "upsert", "metadata", "flip", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The protocol, and what a mutant leaves out of it."""

    ids: Literal["generation", "place", "content", "version"] = "generation"
    intents: bool = True
    sweep: bool = True
    late: bool = True
    taint_after_crash: bool = True
    taint_after_failure: bool = True
    suspect_repeated_upserts: bool = True
    #: Where more than metadata changes, everything that the document consists of changes with it.
    no_metadata_beside_new_text: bool = True
    #: What was planned ahead is thrown away when the batch before it failed, or is suspected.
    ahead: bool = False
    drop_ahead_after_failure: bool = True
    drop_ahead_after_suspicion: bool = True
    flip: Literal["after_upsert", "before_upsert", "after_delete"] = "after_upsert"
    checkpoint_with_flip: bool = True
    durable_garbage: bool = True
    crashes: int = 2
    failures: int = 1


class Request(NamedTuple):
    """One call of the store."""

    kind: Literal["upsert", "metadata", "delete"]
    records: tuple[tuple[ChunkId, str, str], ...]


class State(NamedTuple):
    """``applied`` and what follows up to ``generation`` are durable in the ledger; ``store`` is the store's; the rest
    is lost in a crash. ``late`` are requests that may still land."""

    applied: int = 0
    indexed: int = 0
    manifest: Chunks = ()
    intents: frozenset[ChunkId] = frozenset()
    suspected: frozenset[ChunkId] = frozenset()
    garbage: frozenset[ChunkId] = frozenset()
    generation: int = 0
    store: Stored = frozenset()
    late: tuple[Request, ...] = ()
    crashes: int = 0
    failures: int = 0
    step: Step = "idle"
    target: int = 0
    planned: Chunks = ()
    doubted: frozenset[ChunkId] = frozenset()
    tainted: frozenset[ChunkId] = frozenset()
    #: The batch behind the one in hand, planned on what that one will leave; chunks without an id get theirs later.
    ahead_target: int = 0
    ahead: tuple[tuple[ChunkId | None, str], ...] = ()


def model(rules: Rules) -> Model[State]:
    return Model(
        start=State(),
        steps=lambda state: _steps(rules, state),
        wrong=lambda state: _wrong(rules, state),
    )


def _steps(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    yield from _landings(s)
    yield from _crashes(rules, s)
    if rules.ahead:
        yield from _plans_ahead(rules, s)
    yield from _TABLE[s.step](rules, s)


# -- faults -----------------------------------------------------------------------------------------------------


def _landings(s: State) -> Iterator[tuple[str, State]]:
    for i, request in enumerate(s.late):
        rest = s.late[:i] + s.late[i + 1 :]
        yield f"late {request.kind} lands", s._replace(store=_applied(s.store, request), late=rest)
        yield f"late {request.kind} is lost", s._replace(late=rest)


def _crashes(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    if s.crashes >= rules.crashes or s.step == "idle":
        return
    died = s._replace(
        crashes=s.crashes + 1,
        step="idle",
        target=0,
        planned=(),
        doubted=frozenset(),
        ahead_target=0,
        ahead=(),
        # What was being written in place stands among the intents, and lives.
        tainted=(s.intents | s.suspected) & _ids(s.manifest) if rules.taint_after_crash else frozenset(),
        garbage=s.garbage if rules.durable_garbage else frozenset(),
    )
    request = _request(s)
    yield f"crash before {s.step}", died
    if request is not None and request.records:
        yield f"crash in {s.step}, applied", died._replace(store=_applied(s.store, request))
        if rules.late and not s.late:
            yield f"crash in {s.step}, lands late", died._replace(late=(*s.late, request))


def _failed(rules: Rules, s: State, request: Request) -> Iterator[tuple[str, State]]:
    """No answer: the request was lost, was applied, or will land late; who asked knows none of it."""
    if s.failures >= rules.failures or not request.records:
        return
    after = s._replace(failures=s.failures + 1)
    yield f"{request.kind} lost", after
    yield f"{request.kind} applied without an answer", after._replace(store=_applied(s.store, request))
    if rules.late and not s.late:
        yield f"{request.kind} without an answer, lands late", after._replace(late=(*s.late, request))


# -- the protocol -----------------------------------------------------------------------------------------------


def _plans_ahead(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    """The next batch is planned as soon as the ids of this one are known."""
    if s.step in ("upsert", "metadata", "flip") and s.target < LAST and not s.ahead_target:
        plan = _diff(rules, s.planned, s.target, s.target + 1, s.tainted)
        yield "plan ahead", s._replace(ahead_target=s.target + 1, ahead=plan)


def _idle(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    unknown = {i for i, _, _ in s.store} - _ids(s.manifest) - s.intents - s.suspected - s.garbage
    if rules.sweep and unknown:
        yield "sweep", s._replace(store=frozenset(r for r in s.store if r[0] not in unknown))
    if s.garbage:
        yield "collect garbage", s._replace(step="delete")
    if s.ahead_target:
        yield "take what was planned ahead", s._replace(step="begin", target=s.ahead_target)
        return
    for target in range(s.applied + 1, min(s.applied + 2, LAST) + 1):
        yield f"read up to version {target}", s._replace(step="begin", target=target)


def _begin(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    """Plan, and transaction 1: ids, intents."""
    generation = s.generation + 1
    planned = _planned(rules, s, generation)
    new = _ids(planned) - _ids(s.manifest)
    touched = _moved(s, planned)
    after = s._replace(step="upsert", planned=planned, generation=generation)
    if s.ahead_target == s.target:
        after = after._replace(ahead_target=0, ahead=())
    if rules.intents:
        after = after._replace(intents=s.intents | new | touched)
    if rules.flip == "before_upsert":
        after = after._replace(step="flip")
    if not rules.checkpoint_with_flip:
        after = after._replace(applied=s.target)
    yield "transaction 1", after


def _planned(rules: Rules, s: State, generation: int) -> Chunks:
    texts, _ = VERSIONS[s.target]
    if rules.ids == "place":
        return tuple(((i,), text) for i, text in enumerate(texts))
    if rules.ids == "content":
        return tuple(((text,), text) for text in texts)
    born = s.target if rules.ids == "version" else generation
    ahead = s.ahead_target == s.target
    plan = s.ahead if ahead else _diff(rules, s.manifest, s.indexed, s.target, s.tainted)
    return tuple(((born, text) if i is None else i, text) for i, text in plan)


def _diff(
    rules: Rules, base: Chunks, before: int, target: int, tainted: frozenset[ChunkId]
) -> tuple[tuple[ChunkId | None, str], ...]:
    """Each text with the id that it keeps, or None."""
    texts, metadata = VERSIONS[target]
    kept: Mapping[str, ChunkId] = {text: i for i, text in base if i not in tainted}
    is_empty = len(kept) == len(base) and kept.keys() == set(texts)
    if rules.no_metadata_beside_new_text and metadata != VERSIONS[before][1] and not is_empty:
        kept = {}
    return tuple((kept.get(text), text) for text in texts)


def _upsert(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    request = _request(s)
    assert request is not None
    after = s._replace(store=_applied(s.store, request), step="metadata")
    no_metadata = rules.flip == "after_upsert" and not _moved(s, s.planned)
    yield "upsert", after._replace(step="flip" if no_metadata else "metadata")
    for what, failed in _failed(rules, s, request):
        doubted = frozenset(i for i, _, _ in request.records) if rules.suspect_repeated_upserts else frozenset()
        yield f"{what}, tried again", failed._replace(doubted=s.doubted | doubted)


def _metadata(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    request = _request(s)
    assert request is not None
    following: Step = "delete" if rules.flip == "after_delete" else "flip" if rules.flip == "after_upsert" else "idle"
    yield "metadata in place", s._replace(store=_applied(s.store, request), step=following)
    for what, failed in _failed(rules, s, request):
        if rules.taint_after_failure:
            # The batch is planned again, and gives these chunks new ids.
            again = failed._replace(step="begin", tainted=s.tainted | _moved(s, s.planned))
            if rules.drop_ahead_after_failure:
                again = again._replace(ahead_target=0, ahead=())
            yield f"{what}, planned again", again
        else:
            yield f"{what}, tried again", failed


def _flip(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    """Transaction 2."""
    live = _ids(s.planned)
    after = s._replace(
        applied=s.target,
        indexed=s.target,
        manifest=s.planned,
        garbage=s.garbage | ((_ids(s.manifest) | s.intents | s.suspected) - live),
        intents=frozenset(),
        # Chunks that live and that a repeated upsert may still overwrite are remembered while they live.
        suspected=(s.suspected | s.doubted) & live,
        tainted=(s.tainted | s.doubted) & live,
        doubted=frozenset(),
        step="idle",
        target=0,
        planned=(),
    )
    if s.doubted and rules.drop_ahead_after_suspicion:
        after = after._replace(ahead_target=0, ahead=())
    if rules.flip == "before_upsert":
        after = after._replace(step="upsert", target=s.target, planned=s.planned)
    if rules.flip == "after_delete":
        after = after._replace(garbage=frozenset())
    yield "transaction 2", after


def _delete(rules: Rules, s: State) -> Iterator[tuple[str, State]]:
    request = _request(s)
    assert request is not None
    store = _applied(s.store, request)
    if rules.flip == "after_delete" and s.target:
        yield "delete", s._replace(store=store, step="flip")
    else:
        yield "delete", s._replace(store=store, garbage=frozenset(), step="idle")


_TABLE = {
    "idle": _idle,
    "begin": _begin,
    "upsert": _upsert,
    "metadata": _metadata,
    "flip": _flip,
    "delete": _delete,
}


# -- what the steps are made of ---------------------------------------------------------------------------------


def _request(s: State) -> Request | None:
    """What the step asks of the store."""
    if s.step == "upsert":
        known = _ids(s.manifest) if s.indexed != s.target else frozenset()
        metadata = VERSIONS[s.target][1]
        return Request("upsert", tuple((i, text, metadata) for i, text in s.planned if i not in known))
    if s.step == "metadata":
        moved = _moved(s, s.planned)
        return Request("metadata", tuple((i, "", VERSIONS[s.target][1]) for i in sorted(moved, key=repr)))
    if s.step == "delete":
        dead = s.garbage if not s.target else (_ids(s.manifest) | s.intents) - _ids(s.planned)
        return Request("delete", tuple((i, "", "") for i in sorted(dead, key=repr)))
    return None


def _moved(s: State, planned: Chunks) -> frozenset[ChunkId]:
    """Chunks that stay and whose metadata does not."""
    if VERSIONS[s.indexed][1] == VERSIONS[s.target][1]:
        return frozenset()
    return _ids(planned) & _ids(s.manifest)


def _ids(chunks: Chunks) -> frozenset[ChunkId]:
    return frozenset(i for i, _ in chunks)


def _applied(store: Stored, request: Request) -> Stored:
    records = {i: (text, metadata) for i, text, metadata in store}
    for i, text, metadata in request.records:
        if request.kind == "upsert":
            records[i] = (text, metadata)
        elif request.kind == "delete":
            records.pop(i, None)
        elif i in records:
            records[i] = (records[i][0], metadata)
    return frozenset((i, text, metadata) for i, (text, metadata) in records.items())


# -- what must hold ---------------------------------------------------------------------------------------------


def _wrong(rules: Rules, s: State) -> str | None:
    at_rest = s.step == "idle" and not (s.late or s.garbage or s.intents)
    return _wrong_always(s) or (_wrong_at_rest(rules, s) if at_rest else None)


def _wrong_always(s: State) -> str | None:
    store = {i: text for i, text, _ in s.store}
    if sorted(text for _, text in s.manifest) != sorted(VERSIONS[s.indexed][0]):
        return "I1: the manifest is not the version that it names"
    if any(store.get(i) != text for i, text in s.manifest):
        return "I2: a reader misses a chunk, or sees a wrong one"
    metadata = {i: value for i, _, value in s.store}
    seen = (tuple(text for _, text in s.manifest), *sorted({metadata[i] for i, _ in s.manifest}))
    if s.manifest and seen not in VERSIONS:
        return "I4: a reader sees a document that never was: text of one version, metadata of another"
    if s.indexed < s.applied and s.step == "idle":
        return "I3: the checkpoint is ahead of the index"
    return None


def _wrong_at_rest(rules: Rules, s: State) -> str | None:
    metadata = {i: value for i, _, value in s.store}
    # With a sweep, what nothing names is gone one step later.
    if metadata.keys() - _ids(s.manifest) and not rules.sweep:
        return "I5: the store holds what nothing names"
    if any(metadata[i] != VERSIONS[s.indexed][1] for i, _ in s.manifest):
        return "I6: the index rests with old metadata"
    return None
