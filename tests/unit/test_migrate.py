"""Generations without a database: names in the store, progress, which one answers, what one remembers and costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdc_agent.agents.planning import Collection
from cdc_agent.agents.watermark import Watermark
from cdc_agent.config import Config, EmbeddingConfig
from cdc_agent.daemon.consumers import Consumers, Served, StillBusy, resync_targets
from cdc_agent.daemon.first_copies import FirstCopies
from cdc_agent.daemon.generations import Embedders, changed_collections, differences, next_generations, planned
from cdc_agent.daemon.migrations import Migrations, complete_drops, leave_unconfigured, settle_all
from cdc_agent.daemon.threads import Threads
from cdc_agent.embedding.hashing import HashingEmbedder
from cdc_agent.errors import EmbeddingError, IdentityMismatch, StoreRejected, StreamFull, UsageError
from cdc_agent.health import Health
from cdc_agent.ledger.base import Checkpoint, Flip, Generation, Manifest, Resync
from cdc_agent.ledger.sqlite import SqliteLedger
from cdc_agent.lsn import Lsn, Version
from cdc_agent.migrate.copying import copy_of, progress_of
from cdc_agent.migrate.names import physical_name, settle, stored_name
from cdc_agent.migrate.planning import Sample, extrapolated
from cdc_agent.migrate.serving import LiveSearch, Target
from cdc_agent.retry import Backoff, Retrier
from cdc_agent.stream.sqlite import SqliteStream
from cdc_agent.vectorstore.base import Record
from cdc_agent.vectorstore.memory import MemoryStore
from cdc_agent.vectorstore.records import CollectionMissing
from tests.support.generations import generation, transaction
from tests.support.scripted import a_collection
from tests.support.wait import until

UUID = "our-ledger"


def opened(store: MemoryStore, one: Generation, *, text: str) -> None:
    """The generation as it lies in the store, with one chunk that says which it is."""
    settle(store, [one], UUID)
    marker = {"cdc_ledger": UUID, "cdc_fingerprint": one.fingerprint}
    store.open_collection(one.physical, dimensions=2, marker=marker)
    record = Record(id="a#1.0", text=text, metadata={}, embedding=np.array([1, 0], dtype=np.float32))
    store.upsert(one.physical, [record])


def text_in(store: MemoryStore, name: str) -> str:
    [found] = store.get(name, ["a#1.0"])
    return found.text


class TestNames:
    def test_the_live_generation_has_the_configured_name_and_others_a_number(self) -> None:
        assert stored_name(generation(3, "live")) == "docs"
        assert stored_name(generation(1, "retired")) == "docs.g1"
        assert stored_name(generation(2, "building")) == "docs.g2"
        assert (physical_name("docs", 1), physical_name("docs", 2)) == ("docs", "docs@2")

    @pytest.mark.parametrize("died_after", [0, 1, 2])
    def test_an_interrupted_renaming_goes_on_from_any_point(self, died_after: int) -> None:
        # Given two generations in the store, and a switch of which so many renamings happened
        store = MemoryStore()
        one, two = generation(1, "live"), generation(2, "building")
        opened(store, one, text="first")
        opened(store, two, text="second")
        renamings = [("docs", "docs.g1"), ("docs@2", "docs")]
        for name, stored_as in renamings[:died_after]:
            store.rename_collection(name, stored_as)

        # When a new process, which knows no aliases, settles the names
        store._aliases.clear()
        switched = [replace(one, state="retired"), replace(two, state="live")]
        settle(store, switched, UUID)

        # Then each lies where the ledger says, under the same physical name as ever, and repeating changes nothing
        settle(store, switched, UUID)
        assert set(store.stored()) == {"docs", "docs.g1"}
        assert (text_in(store, "docs"), text_in(store, "docs@2")) == ("first", "second")

    def test_what_is_not_ours_is_not_renamed(self) -> None:
        # Given a collection of somebody else with the name
        store = MemoryStore()
        store.open_collection("docs", dimensions=2, marker={"cdc_ledger": "another"})

        # When names are settled
        settle(store, [generation(1, "retired"), generation(2, "live")], UUID)

        # Then it is where it was
        assert set(store.stored()) == {"docs"}

    def test_who_took_the_name_while_nobody_had_it_gives_way_if_it_holds_nothing(self) -> None:
        # Given a switch between whose renamings somebody opened a collection of the configured name
        store = MemoryStore()
        one, two = generation(1, "retired"), generation(2, "live")
        opened(store, one, text="first")
        opened(store, replace(two, state="building"), text="second")
        store.rename_collection("docs", "docs.g1")
        store.alias("theirs", "docs")
        store.open_collection("theirs", dimensions=2, marker={})

        # When they wrote to it, then it stays and is named
        theirs = Record(id="x", text="theirs", metadata={}, embedding=np.array([1, 0], dtype=np.float32))
        store.upsert("theirs", [theirs])
        with pytest.raises(StoreRejected, match="not ours"):
            settle(store, [one, two], UUID)
        assert store.count("theirs") == 1

        # When they did not, then it goes
        store.delete("theirs", ["x"])
        settle(store, [one, two], UUID)
        assert set(store.stored()) == {"docs", "docs.g1"}
        assert text_in(store, "docs@2") == "second"


class TestProgress:
    def test_a_copy_waits_runs_and_is_done(self) -> None:
        two = generation(2, "building")
        copy = copy_of(two, "public.docs")
        running = replace(copy, id=7, rows_done=50, rows_estimated=100, started_at=10.0)

        assert progress_of(two, []).state == "waiting"
        found = progress_of(two, [running], now=20.0)
        assert (found.state, found.busy, found.rows_done, found.eta_s) == ("running", True, 50, 10.0)
        assert progress_of(two, [replace(running, state="failed")]).state == "failed"
        done = replace(running, state="done")
        assert progress_of(two, [done]).state == "done"
        assert not progress_of(two, [done]).busy

    def test_only_a_whole_resync_of_its_own_makes_a_generation_complete(self) -> None:
        two = generation(2, "building")
        other = Resync(table="public.docs", collections=("docs",), state="done")
        keys = Resync(table="public.docs", collections=("docs@2",), keys=(("1",),), state="done")
        some = Resync(table="public.docs", collections=("docs@2",), predicate="id > 3", state="done")

        assert progress_of(two, [other, keys, some]).state == "waiting"

    def test_a_complete_generation_that_is_read_again_is_busy(self) -> None:
        two = generation(2, "building")
        done = replace(copy_of(two, "public.docs"), state="done")
        again = replace(done, state="running", reason="SLOT_LOST")

        assert progress_of(two, [done, again]).busy


class FakeSearcher:
    def __init__(self, act: Callable[[], list[Any]]) -> None:
        self._act = act

    def search(self, *_: Any, **__: Any) -> list[Any]:
        return self._act()


class TestServing:
    def test_a_search_whose_generation_was_dropped_under_it_asks_the_one_that_is_live(self) -> None:
        # Given a search that began on a generation which is switched away and dropped meanwhile
        targets: dict[str, Target] = {}
        new = Target(physical="docs@2", searcher=FakeSearcher(lambda: ["new"]))

        def switch_and_drop() -> list[Any]:
            targets["docs"] = new
            raise CollectionMissing("docs")

        targets["docs"] = Target(physical="docs", searcher=FakeSearcher(switch_and_drop))

        # When it fails, then the other one answers
        assert LiveSearch(lambda: targets).search("docs", "x") == ["new"]

    def test_a_live_collection_that_is_missing_is_an_error(self) -> None:
        def missing() -> list[Any]:
            raise CollectionMissing("docs")

        targets = {"docs": Target(physical="docs", searcher=FakeSearcher(missing))}
        with pytest.raises(CollectionMissing):
            LiveSearch(lambda: targets).search("docs", "x")
        with pytest.raises(UsageError, match="no collection 'dogs'") as raised:
            LiveSearch(lambda: targets).search("dogs", "x")
        assert "docs" in raised.value.hint


def config(tmp_path: Path, *, text: str = "{body}", embedding: Mapping[str, Any] | None = None, **more: Any) -> Config:
    collection = {"name": "docs", "table": "public.docs", "text": text, **more}
    return Config(
        source={"dsn": "host=localhost"},
        state_dir=tmp_path,
        collections=[collection],
        embedding=embedding or {"backend": "hashing"},
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[SqliteStream]:
    stream = SqliteStream(tmp_path / "stream.sqlite")
    yield stream
    stream.close()


class Models:
    """Counts the models that are loaded, and keeps what they were loaded with."""

    def __init__(self) -> None:
        self.loaded: list[EmbeddingConfig] = []
        self.closed = 0

    def of(self, config: Config) -> Embedders:
        return Embedders(config.embedding, self._load)

    def _load(self, section: EmbeddingConfig) -> Any:
        self.loaded.append(section)
        model = HashingEmbedder(dimensions=section.dimensions or 64)
        model.close = self._close  # type: ignore[method-assign]
        return model

    def _close(self) -> None:
        self.closed += 1


def first_start(ledger: SqliteLedger, config: Config) -> None:
    for plan in planned(config, ledger, Models().of(config)):
        ledger.save_generation(plan.generation)


class TestPlanned:
    def test_the_first_start_makes_the_first_generation_under_the_configured_name(
        self, ledger: SqliteLedger, tmp_path: Path
    ) -> None:
        first = config(tmp_path)
        [plan] = planned(first, ledger, Models().of(first))

        assert plan.is_new
        assert (plan.generation.physical, plan.generation.state, plan.spec.name) == ("docs", "live", "docs")
        assert plan.generation.agent == "indexer"

    def test_the_same_configuration_fits_and_another_is_named_with_what_differs(
        self, ledger: SqliteLedger, tmp_path: Path
    ) -> None:
        # Given a generation
        first_start(ledger, config(tmp_path))

        # Then the configuration that it was built with fits, and what makes no other result may change
        for same in (config(tmp_path), config(tmp_path, embedding={"backend": "hashing", "device": "cuda"})):
            [plan] = planned(same, ledger, Models().of(same))
            assert not plan.is_new

        # And any other is refused by name
        for other, key in (
            (config(tmp_path, text="{title}"), "text"),
            (config(tmp_path, metadata=["n"]), "metadata"),
            (config(tmp_path, where="n > 1"), "where"),
            (config(tmp_path, chunking={"max_tokens": 99}), "chunking.max_tokens"),
            (config(tmp_path, embedding={"backend": "hashing", "dimensions": 8}), "embedding.dimensions"),
        ):
            with pytest.raises(IdentityMismatch, match=rf"CONFIG_CHANGED.*{key}") as raised:
                planned(other, ledger, Models().of(other))
            assert raised.value.exit_code == 78
            assert "cdc-agent migrate start" in raised.value.hint

    def test_another_table_is_another_index(self, ledger: SqliteLedger, tmp_path: Path) -> None:
        first_start(ledger, config(tmp_path))
        moved = Config(
            source={"dsn": "host=localhost"},
            state_dir=tmp_path,
            collections=[{"name": "docs", "table": "public.other", "text": "{body}"}],
            embedding={"backend": "hashing"},
        )
        with pytest.raises(IdentityMismatch, match=r"CONFIG_CHANGED.*table"):
            planned(moved, ledger, Models().of(moved))

    def test_while_one_is_built_both_run_each_as_it_was_described(self, ledger: SqliteLedger, tmp_path: Path) -> None:
        # Given a generation, and another one begun with another model and template
        first_start(ledger, config(tmp_path))
        new = config(tmp_path, text="new {body}", embedding={"backend": "hashing", "dimensions": 8})
        models = Models()
        embedders = models.of(new)
        [begun] = next_generations(new, ledger.generations(), embedders, None)
        ledger.save_generation(begun.generation)

        # When a start has the new configuration
        old_plan, new_plan = planned(new, ledger, embedders)

        # Then the old one is made of what the ledger kept, and the new one of the configuration
        assert (old_plan.spec.template.text, old_plan.spec.name) == ("{body}", "docs")
        assert (new_plan.spec.template.text, new_plan.spec.name) == ("new {body}", "docs@2")
        assert (embedders.of(old_plan.embedding).dimensions, embedders.of(new_plan.embedding).dimensions) == (64, 8)
        assert len(models.loaded) == 2
        embedders.keep([new_plan.embedding])
        assert models.closed == 1

    def test_a_collection_has_one_migration_at_a_time(self, ledger: SqliteLedger, tmp_path: Path) -> None:
        first_start(ledger, config(tmp_path))
        for text, state in (("a {body}", "building"), ("b {body}", "retired")):
            new = config(tmp_path, text=text)
            if state == "building":
                [begun] = next_generations(new, ledger.generations(), Models().of(new), None)
                ledger.save_generation(begun.generation)
            else:
                ledger.switch_generation("docs", 2, 5.0)
            third = config(tmp_path, text="third {body}")
            with pytest.raises(UsageError, match=state):
                next_generations(third, ledger.generations(), Models().of(third), None)

    def test_there_is_nothing_to_migrate_without_a_change(self, ledger: SqliteLedger, tmp_path: Path) -> None:
        same = config(tmp_path)
        first_start(ledger, same)

        assert changed_collections(same, ledger.generations(), Models().of(same)) == []
        with pytest.raises(UsageError, match="nothing to migrate"):
            next_generations(same, ledger.generations(), Models().of(same), None)

    def test_the_number_of_a_dropped_generation_is_never_used_again(self, ledger: SqliteLedger, tmp_path: Path) -> None:
        first_start(ledger, config(tmp_path))
        new = config(tmp_path, text="new {body}")
        [begun] = next_generations(new, ledger.generations(), Models().of(new), None)
        ledger.save_generation(begun.generation)
        ledger.drop_generation(begun.generation, forget_agent=True)

        [again] = next_generations(new, ledger.generations(), Models().of(new), None)
        assert again.generation.number == 3

    def test_no_secret_is_kept_and_none_goes_to_another_endpoint(self, ledger: SqliteLedger, tmp_path: Path) -> None:
        # Given a generation of a model behind a key
        key = tmp_path / "old.key"
        key.write_text("old-secret\n")
        old = {"backend": "openai", "model": "m", "url": "https://old.example/v1", "api_key": "old-secret"}
        first = config(tmp_path, embedding={**old, "api_key_file": str(key)})
        first_start(ledger, first)
        [one] = ledger.generations()
        assert "old-secret" not in one.spec

        # When the configuration names another endpoint with another key
        new = {
            "backend": "openai",
            "model": "m2",
            "url": "https://new.example/v1",
            "api_key": "new-secret",
            "dimensions": 8,
        }
        second = config(tmp_path, embedding=new)
        models = Models()
        embedders = models.of(second)
        [begun] = next_generations(second, ledger.generations(), embedders, None)
        ledger.save_generation(begun.generation)
        for plan in planned(second, ledger, embedders):
            embedders.of(plan.embedding)

        # Then each endpoint is given its own
        given = {section.url: section.api_key.get_secret_value() for section in models.loaded if section.api_key}
        assert given == {"https://old.example/v1": "old-secret", "https://new.example/v1": "new-secret"}

    def test_differences_are_named_by_key(self, ledger: SqliteLedger, tmp_path: Path) -> None:
        first_start(ledger, config(tmp_path))
        [one] = ledger.generations()
        new = config(tmp_path, text="{title}", embedding={"backend": "hashing", "dimensions": 8, "device": "cuda"})

        assert differences(one, new.collections[0], new.embedding) == ["text", "embedding.dimensions"]


class TestLedger:
    def test_a_switch_changes_both_at_once_and_back(self, ledger: SqliteLedger) -> None:
        ledger.save_generation(generation(1, "live"))
        ledger.save_generation(generation(2, "building"))
        for number, states in ((2, ["retired", "live"]), (1, ["live", "retired"])):
            ledger.switch_generation("docs", number, 5.0)
            assert [g.state for g in ledger.generations()] == states
        assert [g.switched_at for g in ledger.generations()] == [5.0, 5.0]

    def test_a_dropped_generation_leaves_nothing_of_itself_and_everything_of_others(self, ledger: SqliteLedger) -> None:
        # Given two generations with a document, garbage and a resync each
        for one in (generation(1, "live"), generation(2, "dropping")):
            ledger.save_generation(one)
            ledger.save_collection(one.physical, "f")
            ledger.start_resync(Resync(table="public.docs", collections=(one.physical,)))
            manifest = Manifest(
                collection=one.physical, document_id="a", version=Version(Lsn(1), 1), xid=1, relation_oid=1
            )
            flip = Flip(agent=one.agent, checkpoint=Checkpoint(offset=5), generation=0, manifests=[manifest])
            ledger.flip(flip)

        # When one is dropped
        ledger.drop_generation(generation(2, "dropping"), forget_agent=True)

        # Then only the other is there
        assert [ledger.counts(name) for name in ("docs", "docs@2")] == [(1, 0), (0, 0)]
        assert [r.collections for r in ledger.resyncs()] == [("docs",)]
        assert ledger.collection_fingerprint("docs@2") is None
        assert ledger.checkpoint("indexer").offset == 5
        assert ledger.checkpoint("indexer:docs@2").offset == 0
        assert [g.state for g in ledger.generations()] == ["live", "dropped"]

    def test_an_agent_is_registered_once(self, ledger: SqliteLedger) -> None:
        assert ledger.register_agent("x", 7).offset == 7
        assert ledger.register_agent("x", 9).offset == 7


class FakeIndexer:
    """Runs until stopped, or fails; its watermark is the test's."""

    def __init__(self, name: str, physicals: Sequence[str], stop: threading.Event) -> None:
        self.name, self.physicals, self.stop = name, list(physicals), stop
        self.watermark = Watermark()
        self.fails: Exception | None = None

    def run_planner(self) -> None:
        while not self.stop.wait(0.01):
            if self.fails is not None:
                raise self.fails

    def run_writer(self) -> None:
        self.stop.wait()

    def hurry(self) -> None:
        """Nothing is put off here."""


class Crew:
    """Consumers over fake indexers, and the migrations of their generations over a memory store."""

    def __init__(self, ledger: SqliteLedger, stream: SqliteStream) -> None:
        self.ledger, self.stream, self.store = ledger, stream, MemoryStore()
        self.stop = threading.Event()
        self.threads = Threads(self.stop)
        self.indexers: dict[str, FakeIndexer] = {}
        self.consumers = Consumers(make=self._make, ledger=ledger, stream=stream)

    def _make(self, name: str, served: Sequence[Served], stop: threading.Event, health: Health) -> Any:
        self.indexers[name] = FakeIndexer(name, [s.physical for s in served], stop)
        return self.indexers[name]

    def add(self, *generations: Generation) -> None:
        for one in generations:
            self.ledger.save_generation(one)
            opened(self.store, one, text=one.physical)
        served = [self.served(one) for one in generations]
        self.consumers.add(generations[0].agent, served)

    def served(self, one: Generation) -> Served:
        collection = a_collection()
        named = Collection(spec=replace(collection.spec, name=one.physical), chunk=collection.chunk)
        return Served(
            generation=one,
            collection=named,
            embedding=EmbeddingConfig(backend="hashing"),
            embedder=HashingEmbedder(),
            target=Target(physical=one.physical, searcher=FakeSearcher(list)),
        )

    def close(self) -> None:
        self.stop.set()
        self.consumers.stop()
        self.threads.join(5)


@pytest.fixture
def crew(ledger: SqliteLedger, stream: SqliteStream) -> Iterator[Crew]:
    crew = Crew(ledger, stream)
    yield crew
    crew.close()


class TestConsumers:
    def test_readers_are_told_what_every_generation_that_answers_has(self, crew: Crew) -> None:
        # Given two collections that answer, by two agents, and one generation that is being built
        crew.add(generation(1, "live"))
        crew.add(generation(2, "live", "others"))
        crew.add(generation(3, "building", "others"))
        for name, applied in (("indexer", 30), ("indexer:others@2", 20), ("indexer:others@3", 10)):
            crew.indexers[name].watermark.advance(applied, Lsn(applied))

        # Then complete is what both that answer have
        mark = crew.consumers.watermark
        assert (mark.applied_lsn, mark.offset) == (Lsn(20), 20)
        assert mark.wait_lsn(Lsn(20), 0)
        assert not mark.wait_lsn(Lsn(21), 0)
        assert set(crew.consumers.targets()) == {"docs", "others"}

    def test_one_generation_is_taken_from_an_agent_and_its_others_go_on(self, crew: Crew) -> None:
        # Given an agent with two generations at work
        crew.add(generation(1, "retired"), generation(1, "live", "others"))
        crew.consumers.start(crew.threads)
        before = crew.indexers["indexer"]
        before.watermark.advance(9, Lsn(99))
        [gone] = [s for s in crew.consumers.served if s.physical == "docs"]

        # When one is removed
        assert crew.consumers.remove(gone) is False

        # Then the agent goes on with the other, and readers see no step back
        assert before.stop.is_set()
        assert crew.indexers["indexer"].physicals == ["others"]
        assert crew.consumers.watermark.applied_lsn == Lsn(99)
        assert not crew.stop.is_set()

    def test_what_fails_where_nobody_reads_stops_nothing_that_answers(self, crew: Crew) -> None:
        # Given a generation that answers and one that is being built
        crew.add(generation(1, "live"))
        crew.add(generation(2, "building"))
        crew.consumers.start(crew.threads)
        crew.ledger.start_resync(copy_of(generation(2, "building"), "public.docs"))

        # When the one that is built fails for good
        crew.indexers["indexer:docs@2"].fails = EmbeddingError("the key is refused")
        building = crew.consumers.served[1]
        until(lambda: crew.consumers.problems_of(building), what="the problem")

        # Then its agent alone has ended, and says why; readiness does not hang on it
        assert crew.consumers.problems_of(building)[0].message == "the key is refused"
        assert not crew.stop.is_set()
        assert crew.consumers.problems() == []
        until(lambda: crew.ledger.resyncs() == [], what="its copy to be given up")

        # But what fails where searches are answered ends the daemon
        crew.indexers["indexer"].fails = EmbeddingError("the model is gone")
        until(crew.stop.is_set, what="the end")
        assert isinstance(crew.threads.failure, EmbeddingError)

    @pytest.mark.parametrize("copied", [False, True])
    def test_what_failed_for_good_holds_nobody_up_and_has_lost_its_place(
        self, ledger: SqliteLedger, tmp_path: Path, copied: bool
    ) -> None:
        # Given a stream that is nearly full, a generation that answers and has all of it, and one that is built
        with closing(SqliteStream(tmp_path / "small.sqlite", max_bytes=4_000)) as stream:
            crew = Crew(ledger, stream)
            for one in (generation(1, "live"), generation(2, "building")):
                crew.add(one)
                ledger.save_collection(one.physical, "f")
            state = "done" if copied else "running"
            ledger.start_resync(replace(copy_of(generation(2, "building"), "public.docs"), state=state))
            stream.append([transaction(n) for n in range(1, 4)])
            stream.release("indexer", stream.head_offset())
            with pytest.raises(StreamFull):
                stream.append([transaction(n) for n in range(4, 8)])

            # When the one that is built fails for good
            crew.consumers.start(crew.threads)
            crew.indexers["indexer:docs@2"].fails = EmbeddingError("the key is refused")
            until(lambda: stream.consumers() == ["indexer"], what="its place to be given up")

            # Then there is room again, and neither of its threads, nor its removal, takes the place back
            stream.append([transaction(n) for n in range(4, 8)])
            assert not crew.stop.is_set()
            crew.close()
            assert stream.consumers() == ["indexer"]

            # And the next life begins at the end of the stream, and counts nothing of it as copied
            again = Crew(ledger, stream)
            again.add(generation(2, "building"))
            assert (
                ledger.checkpoint("indexer:docs@2").offset == stream.head_offset() == stream.released("indexer:docs@2")
            )
            assert ledger.collection_fingerprint("docs@2") is None
            assert progress_of(generation(2, "building"), ledger.resyncs(), begun=False).state == "waiting"
            again.close()

    def test_what_is_behind_when_the_stream_is_full_gives_up_its_place_and_nobody_else(self, crew: Crew) -> None:
        # Given a generation that answers, one that is built and as far, and one that is stuck
        crew.add(generation(1, "live"))
        crew.add(generation(2, "building"))
        crew.add(generation(3, "building"))
        for number in range(1, 4):
            crew.stream.append([transaction(number)])
        for agent in ("indexer", "indexer:docs@2"):
            crew.stream.release(agent, 3)
        crew.consumers.start(crew.threads)

        # When the stream is full
        crew.consumers.make_room()

        # Then the one that is stuck gives up its place, and says why; asking again changes nothing
        until(lambda: crew.stream.consumers() == ["indexer", "indexer:docs@2"], what="its place to be given up")
        stuck = crew.consumers.served[2]
        assert crew.consumers.problems_of(stuck)[0].message == "it was behind when the stream was full"
        crew.consumers.make_room()
        assert not crew.stop.is_set()
        assert len(crew.consumers.working) == 2

    def test_who_answers_is_waited_for_and_nobody_gives_up_for_it(self, crew: Crew) -> None:
        # Given a generation that answers and is behind, and one that is built and is further behind
        crew.add(generation(1, "live"))
        crew.add(generation(2, "building"))
        for number in range(1, 4):
            crew.stream.append([transaction(number)])
        crew.stream.release("indexer", 2)
        crew.consumers.start(crew.threads)

        # When the stream is full, then giving up would make no room
        crew.consumers.make_room()
        assert len(crew.consumers.working) == 2

    def test_an_agent_that_does_not_end_in_time_goes_on_with_all_it_had(
        self, crew: Crew, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given an agent with two generations, whose writer is held up by the store
        monkeypatch.setattr("cdc_agent.daemon.consumers._STOP_S", 0.05)
        crew.add(generation(1, "retired"), generation(1, "live", "others"))
        held = crew.indexers["indexer"]
        answers = threading.Event()
        held.run_writer = answers.wait  # type: ignore[method-assign, assignment]
        held.watermark.advance(9, Lsn(99))
        crew.consumers.start(crew.threads)
        [gone] = [s for s in crew.consumers.served if s.physical == "docs"]

        # When one is to be removed, then that is refused
        with pytest.raises(StillBusy, match="still at work"):
            crew.consumers.remove(gone)

        # And once the store answers the agent goes on where it was, with both of them
        answers.set()
        until(lambda: crew.indexers["indexer"] is not held, what="the agent to go on")
        until(lambda: crew.consumers.watermark_of(gone) is crew.indexers["indexer"].watermark, what="it to be known")
        assert crew.indexers["indexer"].physicals == ["docs", "others"]
        assert crew.consumers.watermark.applied_lsn == Lsn(99)
        assert crew.consumers.remove(gone) is False
        assert crew.indexers["indexer"].physicals == ["others"]

    def test_an_agent_that_failed_while_it_was_to_be_stopped_does_not_go_on(
        self, crew: Crew, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a generation that is built, whose writer is held up by the store
        monkeypatch.setattr("cdc_agent.daemon.consumers._STOP_S", 0.05)
        crew.add(generation(1, "live"))
        crew.add(generation(2, "building"))
        held = crew.indexers["indexer:docs@2"]
        answers = threading.Event()

        def refused() -> None:
            answers.wait()
            raise EmbeddingError("the key is refused")

        held.run_writer = refused  # type: ignore[method-assign]
        crew.consumers.start(crew.threads)
        building = crew.consumers.served[1]

        # When it is to be removed, and fails for good meanwhile
        with pytest.raises(StillBusy):
            crew.consumers.remove(building)
        answers.set()
        until(lambda: crew.stream.consumers() == ["indexer"], what="its place to be given up")

        # Then nothing begins anew without a place, and it can be removed
        assert crew.consumers.remove(building) is True
        assert [s.physical for s in crew.consumers.served] == ["docs"]
        assert crew.stream.consumers() == ["indexer"]

    def test_a_resync_is_one_for_each_table_and_agent(self, crew: Crew) -> None:
        crew.add(generation(1, "live"), generation(1, "live", "others"))
        crew.add(generation(2, "building"))
        table = crew.consumers.served[0].collection.table

        assert resync_targets(crew.consumers.served) == [(table, ("docs", "others")), (table, ("docs@2",))]
        asked = Resync(table=table, collections=("docs",))
        assert [r.collections for r in crew.consumers.directed(asked)] == [("docs",), ("docs@2",)]


class TestDrops:
    def test_what_was_being_dropped_is_gone_after_the_start(self, crew: Crew) -> None:
        # Given a retired generation, killed while it was being dropped
        crew.add(generation(1, "retired"))
        crew.add(generation(2, "live"))
        crew.stream.release("indexer", 0)
        crew.ledger.save_generation(generation(1, "dropping"))

        # When the next process starts, twice
        crew.store._aliases.clear()
        for _ in range(2):
            settle_all(crew.store, crew.ledger.generations(), UUID)
            complete_drops(crew.store, crew.ledger, crew.stream)

        # Then only the other is in the store, under the configured name, and retention waits for nobody
        assert set(crew.store.stored()) == {"docs"}
        assert text_in(crew.store, "docs@2") == "docs@2"
        assert [g.state for g in crew.ledger.generations()] == ["dropped", "live"]
        consumers = crew.stream._reader.execute("select name from consumer").fetchall()
        assert consumers == [("indexer:docs@2",)]

    def test_a_collection_that_left_the_configuration_holds_nothing_and_is_read_again_when_it_is_back(
        self, crew: Crew, tmp_path: Path
    ) -> None:
        # Given a collection that the configuration names no longer, with a generation that answers and one before
        crew.add(generation(1, "live"))
        crew.add(generation(2, "live", "gone"))
        crew.add(generation(1, "retired", "gone"), generation(3, "retired", "gone"))
        crew.ledger.save_collection("gone@2", "f")
        # And resyncs that nobody would ever apply: they would hold up those of the others
        for state in ("running", "paused"):
            crew.ledger.start_resync(Resync(table="public.gone", collections=("gone@2",), state=state))
        others = crew.ledger.start_resync(Resync(table="public.docs", collections=("docs",)))

        # When the daemon starts without it
        leave_unconfigured(config(tmp_path), crew.ledger, crew.stream)
        settle_all(crew.store, crew.ledger.generations(), UUID)
        complete_drops(crew.store, crew.ledger, crew.stream)

        # Then its index stays, what was retired goes, and retention waits for nobody but the others
        states = {g.physical: g.state for g in crew.ledger.generations()}
        assert states == {"docs": "live", "gone": "dropped", "gone@2": "live", "gone@3": "dropped"}
        assert text_in(crew.store, "gone@2") == "gone@2"
        assert ("indexer:gone@2",) not in crew.stream._reader.execute("select name from consumer").fetchall()

        # And nothing that is to be read is left of it
        assert [r.id for r in crew.ledger.resyncs()] == [others.id]

        # And should it come back, it counts as never read
        assert crew.ledger.collection_fingerprint("gone@2") is None
        assert crew.ledger.register_agent("indexer:gone@2", 77).offset == 77


class TestSwitch:
    """A switch over fake indexers: it is refused until the new generation has all that was said to be there."""

    @pytest.fixture
    def migrations(self, crew: Crew, tmp_path: Path) -> Migrations:
        crew.add(generation(1, "live"))
        crew.add(generation(2, "building"))
        crew.ledger.save_collection("docs", "f")
        crew.ledger._uuid = UUID
        retrier = Retrier(crew.stop, Health(), Backoff(initial_s=0.01, maximum_s=0.02))
        return Migrations(
            consumers=crew.consumers,
            ledger=crew.ledger,
            stream=crew.stream,
            store=crew.store,
            embedders=Embedders(EmbeddingConfig(backend="hashing"), lambda _: HashingEmbedder()),
            resync=None,  # type: ignore[arg-type]
            retrier=retrier,
            copies=FirstCopies(
                consumers=crew.consumers,
                ledger=crew.ledger,
                notify=lambda: None,
                retrier=retrier,
                visible=lambda: lambda: True,
                stop=crew.stop,
            ),
            serve=lambda plan: crew.served(plan.generation),
            open_store=lambda _: None,
            forget_store=lambda _: None,
            reload=lambda: config(tmp_path),
            tables=frozenset(),
        )

    def test_it_is_refused_before_the_copy_is_complete(self, migrations: Migrations) -> None:
        with pytest.raises(StillBusy, match="first copy has not begun"):
            migrations.switch("docs")

    def test_it_is_refused_while_the_new_generation_is_behind_and_changes_both_ways(
        self, crew: Crew, migrations: Migrations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a complete new generation that is a commit behind
        crew.ledger.start_resync(replace(copy_of(generation(2, "building"), "public.docs"), state="done"))
        old, new = crew.indexers["indexer"].watermark, crew.indexers["indexer:docs@2"].watermark
        old.advance(5, Lsn(50))
        new.advance(4, Lsn(40))
        monkeypatch.setattr("cdc_agent.daemon.migrations._CATCH_UP_S", 0.3)

        # When a switch is asked for, then it is refused and nothing changed
        with pytest.raises(StillBusy, match="is behind"):
            migrations.switch("docs")
        assert crew.consumers.targets()["docs"].physical == "docs"

        # But once it is as far, readers go over to it and see no step back; and the same way back
        new.advance(5, Lsn(50))
        migrations.switch("docs")
        assert crew.consumers.targets()["docs"].physical == "docs@2"
        assert set(crew.store.stored()) == {"docs", "docs.g1"}
        assert crew.consumers.watermark.applied_lsn == Lsn(50)
        migrations.rollback("docs")
        assert crew.consumers.targets()["docs"].physical == "docs"
        assert set(crew.store.stored()) == {"docs", "docs.g2"}
        assert [g.state for g in crew.ledger.generations()] == ["live", "retired"]

    def test_a_generation_that_has_stopped_is_not_switched_to(self, crew: Crew, migrations: Migrations) -> None:
        # Given a complete new generation whose agent failed
        crew.ledger.start_resync(replace(copy_of(generation(2, "building"), "public.docs"), state="done"))
        crew.consumers.start(crew.threads)
        crew.indexers["indexer:docs@2"].fails = EmbeddingError("the key is refused")
        until(lambda: crew.consumers.problems_of(crew.consumers.served[1]), what="the problem")

        # When a switch is asked for, then it is refused with what went wrong
        with pytest.raises(StillBusy, match="the key is refused"):
            migrations.switch("docs")
        assert migrations.status(["docs"])[1]["ready"] is False

    def test_a_generation_that_fails_in_the_moment_of_the_switch_does_not_answer(
        self, crew: Crew, migrations: Migrations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a complete new generation
        crew.ledger.start_resync(replace(copy_of(generation(2, "building"), "public.docs"), state="done"))
        crew.consumers.start(crew.threads)
        failing = crew.indexers["indexer:docs@2"]

        # When it fails for good after it was found ready, and before it answers
        wait = failing.watermark.wait_lsn

        def fails(lsn: Lsn, timeout_s: float) -> bool:
            failing.fails = EmbeddingError("the key is refused")
            until(lambda: crew.stream.consumers() == ["indexer"], what="its end")
            return wait(lsn, timeout_s)

        monkeypatch.setattr(failing.watermark, "wait_lsn", fails)
        with pytest.raises(StillBusy, match="the key is refused"):
            migrations.switch("docs")

        # Then the other one answers still
        assert crew.consumers.targets()["docs"].physical == "docs"
        assert [g.state for g in crew.ledger.generations()] == ["live", "building"]

    def test_a_retired_generation_that_lost_its_place_is_copied_before_it_answers_again(
        self, crew: Crew, migrations: Migrations
    ) -> None:
        # Given a switch, after which the generation that answered before failed for good
        crew.ledger.start_resync(replace(copy_of(generation(2, "building"), "public.docs"), state="done"))
        crew.ledger.save_collection("docs@2", "f")
        migrations.switch("docs")
        crew.consumers.start(crew.threads)
        crew.indexers["indexer"].fails = EmbeddingError("the old key is refused")
        until(lambda: crew.stream.consumers() == ["indexer:docs@2"], what="its place to be given up")

        # When the next life begins
        again = Crew(crew.ledger, crew.stream)
        for one in crew.ledger.generations():
            again.add(one)
        migrations._consumers = migrations._copies._consumers = again.consumers

        # Then there is no way back before it was read again, and that is begun
        with pytest.raises(StillBusy, match="first copy has not begun"):
            migrations.rollback("docs")
        migrations._copies.run(again.threads)
        until(lambda: crew.ledger.collection_fingerprint("docs") is not None, what="its copy to be asked for")
        asked = [(r.collections, r.reason) for r in crew.ledger.resyncs() if r.state == "running"]
        assert asked == [(("docs",), "first copy")]
        again.close()

    def test_a_copy_is_not_asked_for_once_nobody_would_apply_it(self, crew: Crew, migrations: Migrations) -> None:
        # Given a new generation whose copy waits until everything can be seen
        visible = threading.Event()
        migrations._copies._visible = lambda: visible.is_set
        crew.consumers.start(crew.threads)
        migrations._copies.run(crew.threads)

        # When it fails for good meanwhile
        crew.indexers["indexer:docs@2"].fails = EmbeddingError("the model is gone")
        until(lambda: crew.stream.consumers() == ["indexer"], what="its place to be given up")
        visible.set()
        copying = [t for t in crew.threads._threads if t.name == "copy docs@2"]
        for thread in copying:
            thread.join(10)

        # Then nothing is asked for, and it counts as never read
        assert len(copying) == 1
        assert crew.ledger.resyncs() == []
        assert crew.ledger.collection_fingerprint("docs@2") is None

    def test_an_unknown_collection_and_a_missing_generation_are_named(self, migrations: Migrations) -> None:
        with pytest.raises(UsageError, match="no collection 'dogs'"):
            migrations.switch("dogs")
        with pytest.raises(UsageError, match="no generation that is retired"):
            migrations.rollback("docs")


class TestCost:
    def test_a_sample_is_extrapolated_to_the_table(self) -> None:
        sample = Sample(
            rows=100, chunks=200, tokens=10_000, reused_chunks=50, reused_tokens=2_500, tokens_per_s=1_000.0
        )
        cost = extrapolated(sample, 1_000)

        assert (cost.chunks, cost.tokens, cost.reused) == (2_000, 100_000, 500)
        assert cost.seconds == 75.0

    def test_what_is_all_reused_costs_no_time_and_what_cannot_be_measured_is_not_guessed(self) -> None:
        known = Sample(rows=10, chunks=10, tokens=100, reused_chunks=10, reused_tokens=100, tokens_per_s=0.0)
        unknown = replace(known, reused_chunks=0, reused_tokens=0)

        assert extrapolated(known, 100).seconds == 0.0
        assert extrapolated(unknown, 100).seconds is None
        empty = Sample(rows=0, chunks=0, tokens=0, reused_chunks=0, reused_tokens=0, tokens_per_s=0.0)
        assert extrapolated(empty, 0).chunks == 0
