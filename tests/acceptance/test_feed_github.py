"""Markdown of a GitHub branch in the index: by signed webhook through the real daemon, beside a real table.

The oracle is the branch: whatever is delivered, lost, doubled or killed, the index ends equal to its head.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest

from cdc_agent.cli import main
from cdc_agent.config.specs import collection_spec
from cdc_agent.events import Column, Relation, Row
from tests.support import senders
from tests.support.daemon import DaemonProcess
from tests.support.fake_github import FakeGithub, blob_sha
from tests.support.oracle import assert_index_equals_rows, assert_index_equals_table
from tests.support.postgres import Database
from tests.support.vendor import Fault
from tests.support.wait import until

NewDaemon = Callable[..., DaemonProcess]
SECRET = "it is a secret"
NOTES = {"name": "notes", "table": "public.notes", "text": "{body}"}
COLUMNS = ("path", "title", "body", "url", "repository", "branch", "sha")


@pytest.fixture
def github() -> Iterator[FakeGithub]:
    with FakeGithub() as github:
        yield github


@pytest.fixture
def daemon(pg: Database, new_daemon: NewDaemon, github: FakeGithub) -> DaemonProcess:
    pg.execute("create table notes (id int primary key, body text)")
    pg.execute("insert into notes values (1, 'one')")
    daemon = new_daemon(
        pg,
        collections=[NOTES, handbook(github)],
        webhooks={"github": {"kind": "github", "secret": SECRET}},
    )
    (daemon.folder / "token").write_text(github.token + "\n")
    return daemon


def handbook(github: FakeGithub, **more: Any) -> dict[str, Any]:
    feed = {
        "kind": "github",
        "repository": github.repository,
        "paths": ["docs/**/*.md"],
        "webhook": "github",
        "api_url": github.url,
        "token_file": "./token",
        # What a test has not delivered it must not find by itself.
        "list_every_s": 3600,
    }
    return {
        "name": "handbook",
        "feed": {**feed, **more},
        "text": "{title}\n\n{body}",
        "metadata": ["path", "url"],
        "chunking": {"max_tokens": 32},
    }


def deliver(daemon: DaemonProcess, payload: Any, event: str = "push") -> None:
    headers, body = senders.github(payload, SECRET, event)
    answer = httpx.post(f"{daemon.url}/webhooks/github", headers=headers, content=body)
    assert answer.status_code == 202, answer.text


def rows(files: Mapping[str, bytes], repository: str = "octo/handbook") -> list[Row]:
    """What the files come to, by a reading of docs/FEEDS.md and not by our code."""
    relation = Relation(
        oid=1,
        root_oid=1,
        schema="github",
        name="handbook",
        columns=tuple(Column(name=name, type_oid=25) for name in COLUMNS),
        key=("path",),
    )
    found = []
    for path, content in files.items():
        if not (path.startswith("docs/") and path.endswith(".md")):
            continue
        first = content.decode().splitlines()[0] if content else ""
        title = first[2:] if first.startswith("# ") else path.rpartition("/")[2].removesuffix(".md")
        # An API that is neither GitHub's own nor below /api/v3 is taken for where people read, too.
        values = [path, title, content.decode(), "", repository, "main", blob_sha(content)]
        found.append(Row(relation, tuple(value.encode() for value in values)))
    return found


def assert_index_equals_branch(daemon: DaemonProcess, github: FakeGithub, timeout_s: float = 30.0) -> None:
    spec = collection_spec(daemon.config.collections[1])
    wanted = []
    for row in rows(github.head()):
        url = f"{github.url}/{github.repository}/blob/main/{row['path']}"
        wanted.append(Row(row.relation, (*row.raw[:3], url.encode(), *row.raw[4:])))
    assert_index_equals_rows(daemon.config, spec, wanted, timeout_s)


def verify(daemon: DaemonProcess) -> dict[str, Any]:
    number = daemon.post("/verifies", {}).json()["id"]
    until(lambda: daemon.get(f"/verifies/{number}").json()["state"] in ("done", "failed"), 60, "the audit to end")
    return dict(daemon.get(f"/verifies/{number}").json())


def embedded(daemon: DaemonProcess) -> float:
    return daemon.metric("cdc_agent_chunks_embedded_total")


def paragraphs(count: int, changed: int | None = None) -> str:
    """A page of paragraphs that are a chunk or so each."""
    lines = [
        f"Paragraph {n} tells of matter {n * 7919} and of how the people of place {n * 104729} deal with it."
        for n in range(count)
    ]
    if changed is not None:
        lines[changed] = "This paragraph was rewritten from its beginning to its end by somebody who knew better."
    return "# Matters\n\n" + "\n\n".join(lines) + "\n"


FIRST = {
    "docs/refunds.md": "# Refunds\n\nWe pay money back within fourteen days.\n",
    "docs/deep/er/shipping.md": "Parcels leave at noon.\n",
    "docs/picture.png": b"\x89PNG",
    "README.md": "# Not in paths\n",
    "src/docs/a.md": "# Neither\n",
}


def test_a_push_is_found_an_edit_costs_its_chunks_and_a_file_that_goes_leaves(
    pg: Database, daemon: DaemonProcess, github: FakeGithub
) -> None:
    # Given a branch with two documents among other files
    github.push({**FIRST, "docs/long.md": paragraphs(40)})
    daemon.start()
    assert_index_equals_branch(daemon, github)

    # When another one is pushed and its webhook delivered
    deliver(daemon, github.push({**FIRST, "docs/long.md": paragraphs(40), "docs/new.md": "# Brand new\n\nA zebra.\n"}))
    text = "Brand new\n\n# Brand new\n\nA zebra."
    until(lambda: daemon.search("handbook", text, k=1)[0]["text"] == text, 15, "it to be found")
    hit = daemon.search("handbook", text, k=1)[0]
    assert hit["metadata"]["path"] == "docs/new.md"
    assert hit["source"]["table"] == "github.handbook"

    # And one paragraph of forty is edited: one or two chunks are embedded, and one blob is fetched
    before, fetched = embedded(daemon), daemon.metric("cdc_agent_feed_fetches_total")
    deliver(daemon, github.push({**FIRST, "docs/long.md": paragraphs(40, changed=20)}))
    assert_index_equals_branch(daemon, github)
    assert 1 <= embedded(daemon) - before <= 2
    assert daemon.metric("cdc_agent_feed_fetches_total") - fetched == 1

    # And one is renamed, which embeds nothing, and one removed
    before = embedded(daemon)
    deliver(daemon, github.push({"docs/money/refunds.md": FIRST["docs/refunds.md"], "docs/long.md": paragraphs(40)}))
    assert_index_equals_branch(daemon, github)

    assert embedded(daemon) == before

    # Then what the audit says is nothing, the table is as it was, and nobody was asked elsewhere
    report = verify(daemon)
    assert report["state"] == "done", report
    assert report["found"] == {}, report
    assert_index_equals_table(daemon, pg)
    assert daemon.problems() == []
    assert github.token not in daemon.log
    explained = daemon.get("/documents/handbook/docs/long.md", explain="true").json()
    assert explained["verdict"]["state"] == "indexed", explained


@pytest.mark.parametrize("place", ["before_append", "after_append", "before_flip", "after_upsert"])
@pytest.mark.fault("feed-killed")
def test_a_daemon_that_is_killed_amid_a_push_ends_equal_to_the_branch(
    pg: Database, daemon: DaemonProcess, github: FakeGithub, place: str
) -> None:
    # Given an index that equals the branch
    github.push(FIRST)
    daemon.start()
    assert_index_equals_branch(daemon, github)
    daemon.kill()

    # When the daemon dies at a named place of what a push leads to, and the branch moves on meanwhile
    changed = {**FIRST, "docs/long.md": paragraphs(40), "docs/refunds.md": "# Refunds\n\nNever.\n"}
    github.push(changed)
    daemon.configure(collections=[NOTES, handbook(github, list_every_s=1)])
    daemon.start(failpoint=f"{place}:kill@1", ready=False)
    assert daemon.wait_exit() == -9
    del changed["docs/deep/er/shipping.md"]
    github.push(changed)

    # Then it ends equal to the branch, and nothing is doubled
    daemon.start()
    assert_index_equals_branch(daemon, github)
    assert verify(daemon)["found"] == {}


@pytest.mark.fault("feed-twice-or-backwards", "webhook-out-of-order")
def test_deliveries_that_come_twice_or_backwards_or_are_cut_or_forced_end_equal_to_the_branch(
    daemon: DaemonProcess, github: FakeGithub
) -> None:
    github.push(FIRST)
    daemon.start()

    # When three pushes are delivered in the wrong order, one of them twice, and one with its commits cut off
    pushes = [github.push({**FIRST, "docs/n.md": f"# Number {n}\n\nThis is it.\n"}) for n in range(3)]
    for payload in (pushes[2], {**pushes[0], "commits": []}, pushes[1], pushes[0]):
        deliver(daemon, payload)
    assert_index_equals_branch(daemon, github)

    # And the branch is forced to something that has nothing to do with what it was
    deliver(daemon, {**github.push({"docs/other.md": "# Another history\n\nThat is all.\n"}), "forced": True})
    assert_index_equals_branch(daemon, github)

    # And the branch is deleted: there is nothing, it is said, and searches go on
    deliver(daemon, github.delete_branch())
    until(lambda: daemon.status()["collections"][0]["documents"] == 0, 15, "the index to be empty")
    until(lambda: [p["name"] for p in daemon.problems() or []] == ["feed_handbook"], 15, "it to be said")
    assert daemon.get("/readyz").status_code == 200

    # And when it is back, so are its documents
    deliver(daemon, github.push(FIRST))
    assert_index_equals_branch(daemon, github)
    until(lambda: daemon.problems() == [], 15, "the problem to be over")


@pytest.mark.fault("feed-never-told")
def test_what_was_never_delivered_is_found_by_looking(daemon: DaemonProcess, github: FakeGithub) -> None:
    github.push(FIRST)
    daemon.configure(collections=[NOTES, handbook(github, list_every_s=1)])
    daemon.start()
    assert_index_equals_branch(daemon, github)

    # When somebody pushes and no webhook comes
    github.push({"docs/quiet.md": "# Quiet\n\nNobody rang.\n"})

    # Then it is found all the same; and so it is by a resync and by an audit, which ask for themselves
    assert_index_equals_branch(daemon, github)
    daemon.terminate()
    daemon.configure(collections=[NOTES, handbook(github)])
    daemon.start()
    assert_index_equals_branch(daemon, github)
    github.push({"docs/quiet.md": "# Quiet\n\nNobody rang again.\n"})
    assert daemon.post("/resyncs", {"collection": "handbook"}).status_code == 202
    assert_index_equals_branch(daemon, github)
    github.push({"docs/quieter.md": "# Quieter\n\nNot a sound.\n"})
    assert verify(daemon)["found"] == {}
    assert_index_equals_branch(daemon, github)


def test_other_branches_and_repositories_ring_nothing(daemon: DaemonProcess, github: FakeGithub) -> None:
    payload = github.push(FIRST)
    daemon.start()
    assert_index_equals_branch(daemon, github)
    looks = daemon.metric("cdc_agent_feed_looks_total")

    deliver(daemon, {**payload, "ref": "refs/heads/mainly"})
    deliver(daemon, {**payload, "repository": {"full_name": "octo/other"}})
    deliver(daemon, {"zen": "Keep it logically awesome.", "repository": {"full_name": "octo/handbook"}}, "ping")
    deliver(daemon, payload)

    until(lambda: daemon.metric("cdc_agent_feed_looks_total") == looks + 1, 10, "one look")
    assert daemon.metric("cdc_agent_feed_looks_total") == looks + 1


@pytest.mark.fault("feed-away")
def test_a_github_that_fails_limits_or_redirects_is_waited_for_and_stops_nothing(
    pg: Database, daemon: DaemonProcess, github: FakeGithub
) -> None:
    github.push(FIRST)
    daemon.start()
    assert_index_equals_branch(daemon, github)

    # When GitHub answers with one fault after the other, a redirect to where nobody may ask among them
    limited = {"x-ratelimit-remaining": "0", "retry-after": "2"}
    github.script(
        Fault(500),
        Fault(301, {"location": "http://169.254.169.254/latest"}),
        Fault(200, body=b"<html>"),
        Fault(403, limited),
    )
    deliver(daemon, github.push({**FIRST, "docs/late.md": "# Late\n\nBut there.\n"}))
    until(lambda: daemon.problems() != [], 15, "the trouble to be named")
    assert daemon.get("/readyz").status_code == 200
    pg.execute("insert into notes values (2, 'two')")
    assert_index_equals_table(daemon, pg)

    # Then what was pushed is there in the end, and the limit was kept
    assert_index_equals_branch(daemon, github)
    at = [asked.at for asked in github.asked[-20:] if "branches" in asked.path]
    assert max(after - before for before, after in itertools.pairwise(at)) >= 2
    until(lambda: daemon.problems() == [], 15, "the problem to be over")


@pytest.mark.fault("webhook-fetches")
def test_no_address_in_a_payload_or_an_answer_is_ever_asked(daemon: DaemonProcess, github: FakeGithub) -> None:
    github.push(FIRST)
    daemon.start()
    assert_index_equals_branch(daemon, github)

    # When a signed payload, a redirect and an answer all name another server
    with FakeGithub() as trap:
        payload = github.push({**FIRST, "docs/bait.md": f"# Bait\n\n![picture]({trap.url}/picture.png)\n"})
        addresses = {name: f"{trap.url}/{name}" for name in ("url", "trees_url", "contents_url", "blobs_url")}
        payload["repository"] |= addresses
        payload |= {"compare": trap.url, "head_commit": {**payload["head_commit"], "url": trap.url}}
        head = {"name": "main", "commit": {"sha": payload["after"], "url": trap.url}, "_links": {"self": trap.url}}
        github.script(Fault(302, {"location": f"{trap.url}/moved"}), Fault(200, body=json.dumps(head).encode()))
        deliver(daemon, payload)

        # Then the index equals the branch, and that server has heard of nobody
        assert_index_equals_branch(daemon, github)
        assert trap.asked == []


def test_check_says_what_is_wrong_with_token_repository_and_branch(
    daemon: DaemonProcess, github: FakeGithub, capsys: pytest.CaptureFixture[str]
) -> None:
    github.push(FIRST)

    def said(**more: Any) -> str:
        daemon.configure(collections=[NOTES, handbook(github, **more)])
        main(["check", "-c", str(daemon.path)])
        return next(line for line in capsys.readouterr().out.splitlines() if "feed handbook" in line)

    assert said() == "ok    feed handbook: octo/handbook, branch main: 2 file(s) to index"
    assert "has no branch mian" in said(branch="mian")
    assert "there is no repository octo/hnadbook" in said(repository="octo/hnadbook")
    assert "no file is like paths" in said(paths=["doc/*.md"])
    assert "more than 1 files" in said(max_documents=1)
    (daemon.folder / "token").write_text("another")
    assert "refuses the token" in said()
    assert "cannot be read" in said(token_file="./nowhere")
    assert github.token not in daemon.log


@pytest.mark.fault("feed-files-lost")
@pytest.mark.parametrize("lost", ["stream", "mirror", "both"])
def test_what_is_kept_of_a_feed_may_be_lost_and_damaged(daemon: DaemonProcess, github: FakeGithub, lost: str) -> None:
    github.push({**FIRST, "docs/gone.md": "# Gone\n\nSoon.\n"})
    daemon.start()
    assert_index_equals_branch(daemon, github)
    before = embedded(daemon)
    daemon.terminate()

    # When a file is overwritten, or both are gone, and a document went meanwhile
    folder = daemon.folder / "state" / "feeds" / "handbook"
    for name in ("stream", "mirror") if lost == "both" else (lost,):
        for path in folder.glob(f"{name}.sqlite*"):
            path.unlink()
        if lost != "both":
            (folder / f"{name}.sqlite").write_bytes(b"not a database" * 1000)
    github.push({**FIRST, "docs/new.md": "# New\n\nHere.\n"})
    daemon.start()

    # Then it is begun anew by itself, what is gone leaves, and what was known is not embedded again
    assert_index_equals_branch(daemon, github)
    assert embedded(daemon) <= 2 < before
    assert verify(daemon)["found"] == {}


def test_a_file_that_is_no_text_is_parked_and_the_rest_goes_on(daemon: DaemonProcess, github: FakeGithub) -> None:
    github.push({"docs/good.md": "# Good\n\nAs gold.\n", "docs/bad.md": b"# Bad\n\n\xff\xfe\n"})
    daemon.start()

    until(lambda: daemon.get("/dead-letters").json()["dead_letters"], 30, "the letter")
    letter = daemon.get("/dead-letters").json()["dead_letters"][0]
    assert (letter["table"], letter["key"]) == ("github.handbook", ["docs/bad.md"])

    # When it is mended, it is in the index
    deliver(daemon, github.push({"docs/good.md": "# Good\n\nAs gold.\n", "docs/bad.md": "# Better\n"}))
    assert_index_equals_branch(daemon, github)
    until(lambda: not daemon.get("/dead-letters").json()["dead_letters"], 10, "the letter to be settled")


def test_a_new_template_is_built_beside_the_old_one_and_takes_its_place(
    daemon: DaemonProcess, github: FakeGithub
) -> None:
    github.push(FIRST)
    daemon.start()
    assert_index_equals_branch(daemon, github)

    # When the configuration says something else of the feed's text
    daemon.configure(collections=[NOTES, {**handbook(github), "text": "{path}: {body}"}])
    assert daemon.post("/migrations", {"collection": "handbook"}).status_code == 202
    until(
        lambda: all(
            one["ready"] for one in daemon.get("/migrations").json()["generations"] if one["state"] == "building"
        ),
        30,
        "the new generation",
    )
    github.push({**FIRST, "docs/meanwhile.md": "# Meanwhile\n\nStill.\n"})
    assert daemon.post("/migrations/handbook/switch").status_code == 200, daemon.log[-2000:]
    assert daemon.post("/resyncs", {"collection": "handbook"}).status_code == 202

    # Then it answers, and a start finds it as it was left
    assert_index_equals_branch(daemon, github)
    assert daemon.post("/migrations/handbook/finish").status_code == 200
    assert daemon.terminate() == 0
    daemon.start()
    assert_index_equals_branch(daemon, github)
