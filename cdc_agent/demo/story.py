"""The story: one change after another, each with what it promised and what was seen.

Texts that are written carry the time, so that a second run in the same folder embeds them anew and counts alike.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from cdc_agent.config import load
from cdc_agent.demo.agent import Agent
from cdc_agent.demo.audit import settled_differences
from cdc_agent.demo.claims import Claims
from cdc_agent.demo.corpus import LONG_TITLE, SHORTEN_TITLE, Article
from cdc_agent.demo.screen import Screen
from cdc_agent.demo.sight import Sight, document_of
from cdc_agent.demo.table import ArticlesTable, Commit
from cdc_agent.vectorstore.chroma import ChromaStore

__all__ = ["Story"]

_POLL_S = 0.1
#: The first copy gives up when nothing at all moved for so long.
_STALLED_S = 120.0
#: The most chunks that an edit inside one paragraph may cost.
_MOST_FOR_A_PARAGRAPH = 3
#: The most hits of one search: all chunks of any one article.
_ALL = 100
#: What is written while the daemon is dead.
_MEANWHILE = (
    "The ferry to the island does not sail in a storm",
    "The bakery opens at five and sells out of rye by seven",
    "Orchids on the window sill want water once a week",
)
_UPDATE_BODY = "update articles set body = %s, updated_at = now() where id = %s"


class Story:
    """Plays on a stage. ``play`` leaves the daemon running."""

    def __init__(
        self, articles: Sequence[Article], table: ArticlesTable, agent: Agent, claims: Claims, screen: Screen
    ) -> None:
        self._table = table
        self._agent = agent
        self._claims = claims
        self._screen = screen
        self._count = len(articles)
        self._shorten = 1 + [article.title for article in articles].index(SHORTEN_TITLE)
        self._long = 1 + [article.title for article in articles].index(LONG_TITLE)
        self._stamp = f"{dt.datetime.now():%Y-%m-%d %H:%M:%S.%f}"

    def play(self) -> None:
        self._first_copy()
        self._search()
        self._edit_a_row()
        article_id = self._add_a_row()
        self._delete_a_row(article_id)
        self._touch_every_row()
        self._edit_one_paragraph()
        self._kill()
        self._compare()

    # -- scenes ----------------------------------------------------------------------------------------------

    def _first_copy(self) -> None:
        self._screen.scene(1, "First copy", f"cdc-agent run -c {self._agent.config_path}")
        with self._screen.waiting("the daemon starts and loads the model"):
            self._agent.start()
        began = time.monotonic()
        self._watch_first_copy()
        complete = self._agent.caught_up(self._table.position())
        documents, chunks = self._agent.counts()
        took, embedded = time.monotonic() - began, self._agent.embedded()
        self._claims.check(
            f"{documents} documents are searchable after {took:.1f} s: {chunks} chunks, {embedded} embedded",
            complete and documents == self._count and embedded <= chunks,
            f"the table has {self._count} rows, the index {documents} documents",
        )

    def _watch_first_copy(self) -> None:
        done, moved_at = -1, time.monotonic()
        with self._screen.progress("documents", self._count) as tell:
            while done < self._count and time.monotonic() - moved_at < _STALLED_S:
                before, (done, _) = done, self._agent.counts()
                moved_at = time.monotonic() if done != before else moved_at
                # In a folder that was used before, the index may still hold more than the table.
                tell(min(done, self._count))
                time.sleep(_POLL_S)

    def _search(self) -> None:
        query = "make a text shorter so that it fits and leave the rest out"
        self._screen.scene(2, "Search by meaning", f"“{query}”")
        hits = self._agent.search(query)
        self._screen.hits("", hits)
        best = Sight(hits=hits[:1])
        self._claims.check(f"{SHORTEN_TITLE} is the best hit", best.shows(self._shorten), best)

    def _edit_a_row(self) -> None:
        query = "how wide is an emoji on the screen"
        text = f"Moved to the layout service, which gives an emoji two columns of the screen ({self._stamp})."
        self._screen.scene(3, "Edit a row", f"update articles set body = '{text[:43]}…' where id = {self._shorten}")
        self._screen.hits("before", self._agent.search(query, k=1))
        embedded = self._agent.embedded()
        sight = self._seen(self._table.change(_UPDATE_BODY, text, self._shorten), query)
        self._screen.hits("after", sight.best)
        self._claims.check(
            f"the new text is found {sight.ms:.0f} ms after the commit", sight.shows(self._shorten, text), sight
        )
        self._claims.check(*self._embedded_exactly(1, since=embedded))

    def _add_a_row(self) -> int:
        query = "water damage in the data centre"
        text = f"Coffee ran into the server room, two racks stand in a puddle ({self._stamp})."
        self._screen.scene(4, "Add a row", "insert into articles (title, body, …) values ('Incident 4711', …)")
        self._screen.hits("before", self._agent.search(query, k=1))
        embedded = self._agent.embedded()
        article_id = self._table.add("Incident 4711", text)
        sight = self._seen(self._committed(), query)
        self._screen.hits("after", sight.best)
        self._claims.check(f"it is found {sight.ms:.0f} ms after the commit", sight.shows(article_id, text), sight)
        self._claims.check(*self._embedded_exactly(1, since=embedded))
        return article_id

    def _delete_a_row(self, article_id: int) -> None:
        query = "water damage in the data centre"
        self._screen.scene(5, "Delete a row", f"delete from articles where id = {article_id}")
        commit = self._table.change("delete from articles where id = %s", article_id)
        sight = self._seen(commit, query)
        self._screen.hits("after", sight.best)
        left = self._chunks_of(article_id, commit)
        self._claims.check(
            f"it is gone {sight.ms:.0f} ms after the commit", left.lacks(article_id) and sight.lacks(article_id), left
        )

    def _touch_every_row(self) -> None:
        self._screen.scene(6, "Touch every row", "update articles set updated_at = now()")
        embedded = self._agent.embedded()
        commit = self._table.change("update articles set updated_at = now()")
        complete, found = self._agent.caught_up(commit.lsn), self._differences()
        took = time.monotonic() - commit.at
        self._claims.check(
            f"{commit.rows} new dates are in the index within {took:.1f} s of the commit",
            complete and commit.rows == self._count and not found,
            "; ".join(found[:5]) or "the index did not reach the commit in time",
        )
        self._claims.check(*self._embedded_exactly(0, since=embedded))

    def _edit_one_paragraph(self) -> None:
        body = self._table.body_of(self._long)
        chunks = len(self._agent.search("anything", k=_ALL, where={"title": LONG_TITLE}))
        text = f"While the debugger waits, a red lamp tells colleagues not to disturb you ({self._stamp})."
        self._screen.scene(
            7,
            f"Edit one paragraph of {body.count(chr(10) * 2) + 1}",
            f"{LONG_TITLE}: {len(body):,} characters in {chunks} chunks",
        )
        embedded = self._agent.embedded()
        commit = self._table.change(_UPDATE_BODY, _with_new_paragraph(body, text), self._long)
        sight = self._seen(commit, "red light", k=_ALL, where={"title": LONG_TITLE})
        self._claims.check(
            f"the new words are in the index {sight.ms:.0f} ms after the commit", sight.shows(self._long, text), sight
        )
        spent = self._agent.embedded() - embedded
        self._claims.check(
            _embedded(spent, chunks),
            1 <= spent <= _MOST_FOR_A_PARAGRAPH < chunks,
            f"1 to {_MOST_FOR_A_PARAGRAPH} were to be embedded",
        )

    def _kill(self) -> None:
        self._screen.scene(8, "Pull the plug", "kill -9 the daemon; meanwhile 1 row changes, 2 come, 1 goes")
        self._agent.kill()
        edited, gone = self._shorten, self._count
        texts = [f"{words} ({self._stamp})." for words in _MEANWHILE]
        self._table.change(_UPDATE_BODY, texts[0], edited)
        added = [self._table.add("Timetable", texts[1]), self._table.add("House plants", texts[2])]
        commit = self._table.change("delete from articles where id = %s", gone)
        with self._screen.waiting("the daemon starts again"):
            self._agent.start()
        sight = self._seen(commit, "when can I buy bread")
        self._screen.hits("after", sight.best)
        self._check_after_restart(dict(zip([edited, *added], texts, strict=True)), gone, commit)

    def _check_after_restart(self, texts: dict[int, str], gone: int, commit: Commit) -> None:
        found = {article_id: self._chunks_of(article_id, commit) for article_id in (*texts, gone)}
        self._claims.check(
            "nothing is lost: all 4 changes are in the index",
            not found[gone].hits
            and all(found[article_id].shows(article_id, text) for article_id, text in texts.items()),
            found,
        )
        self._claims.check(*self._embedded_exactly(len(texts), since=0))

    def _compare(self) -> None:
        self._screen.scene(9, "Compare everything", "select * from articles, against all of Chroma")
        with self._screen.waiting("every text and every metadata value"):
            found = self._differences()
        documents, chunks = self._agent.counts()
        self._claims.check(
            f"{documents} documents in {chunks} chunks: the store holds exactly what the table says",
            not found,
            "; ".join(found[:5]),
        )

    # -- what scenes are made of -------------------------------------------------------------------------------

    def _committed(self) -> Commit:
        at = time.monotonic()
        return Commit(rows=1, lsn=self._table.position(), at=at)

    def _seen(self, commit: Commit, query: str, *, k: int = 3, where: dict[str, Any] | None = None) -> Sight:
        hits = self._agent.search(query, k=k, where=where, after=commit.lsn)
        return Sight(hits=hits, ms=(time.monotonic() - commit.at) * 1000)

    def _chunks_of(self, article_id: int, commit: Commit) -> Sight:
        return self._seen(commit, "anything", k=_ALL, where={"cdc_doc": document_of(article_id)})

    def _differences(self) -> list[str]:
        """Between all of the table and all of the store, read as any other program would, with Chroma's client."""
        config = load(self._agent.config_path)
        with closing(ChromaStore.http(config.vectorstore.host, config.vectorstore.port)) as store:
            return settled_differences(store, config.collection_specs()[0], self._table.rows())

    def _embedded_exactly(self, wanted: int, *, since: int) -> tuple[str, bool, str]:
        spent = self._agent.embedded() - since
        _, chunks = self._agent.counts()
        return _embedded(spent, chunks), spent == wanted, f"{wanted} were to be embedded"


def _embedded(spent: int, chunks: int) -> str:
    return f"{spent} of {chunks} chunks {'was' if spent == 1 else 'were'} embedded"


def _with_new_paragraph(body: str, text: str) -> str:
    """The first paragraph of the second half that is longer than a line, replaced."""
    paragraphs = body.split("\n\n")
    half = len(paragraphs) // 2
    place = next((i for i in range(half, len(paragraphs)) if len(paragraphs[i]) > 100), half)
    return "\n\n".join([*paragraphs[:place], text, *paragraphs[place + 1 :]])
