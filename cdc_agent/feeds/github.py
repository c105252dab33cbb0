"""Markdown files of one branch of one repository on GitHub, or on a server that speaks its API.

Three questions: which commit the branch is at, what that commit's tree holds, and what a blob holds. A tree names each
file's blob by the hash of its content, so two listings tell exactly what differs, however the branch came to be there:
force pushes, pushes with more commits than a payload names, lost and repeated deliveries. A blob is believed only if
its content has the hash that it was asked for by.
https://docs.github.com/rest/git/trees, https://docs.github.com/rest/git/blobs
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from cdc_agent.errors import FeedUnavailable
from cdc_agent.events import Event
from cdc_agent.feeds.api import Api, below
from cdc_agent.feeds.base import EVERYTHING, Examined, Found, Ring
from cdc_agent.feeds.columns import GITHUB
from cdc_agent.feeds.markdown import title_of
from cdc_agent.feeds.patterns import path_filter

__all__ = ["HEADERS", "GithubFeed", "web_url_of"]

log = logging.getLogger(__name__)

HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
#: Modes of a tree's entries that are files: a link's content is a path, a submodule's lies elsewhere.
_FILES = frozenset({"100644", "100755"})
#: Folders that are asked for one by one where a tree is too large to be told at once.
_MOST_FOLDERS = 5_000


class GithubFeed:
    """See ``feeds.base.Feed``. ``web_url`` is where people read the repository."""

    columns: tuple[str, ...] = GITHUB
    listing_is_whole = True

    def __init__(
        self,
        api: Api,
        *,
        repository: str,
        branch: str,
        paths: Sequence[str],
        web_url: str,
        max_file_bytes: int,
        max_documents: int,
    ) -> None:
        self._api = api
        self._repository = repository
        self._place = ("repos", *repository.split("/"))
        self._branch = branch
        self._wanted = path_filter(paths)
        self._web_url = web_url.rstrip("/")
        self._max_file_bytes = max_file_bytes
        self._max_documents = max_documents
        #: The commit of the last listing, and that listing.
        self._listed: tuple[str, Mapping[str, str]] = ("", {})
        self._too_large: list[str] = []
        self._branch_is_gone = False

    def heed(self, event: Event) -> Ring | None:
        """A push to our branch. What it says about commits is not looked at: it may be old, and it may be cut."""
        body = event.data if isinstance(event.data, Mapping) else {}
        if event.key.lower() != self._repository.lower():
            return None
        return EVERYTHING if body.get("ref") in (f"refs/heads/{self._branch}", self._branch) else None

    def list(self) -> Mapping[str, str]:
        commit = self._head()
        self._branch_is_gone = commit is None
        if commit is None:
            return {}
        if commit != self._listed[0]:
            self._listed = (commit, self._files(commit))
        return self._listed[1]

    def oddities(self) -> Sequence[str]:
        if self._branch_is_gone:
            return [f"{self._repository} has no branch {self._branch}: nothing of it is indexed"]
        if self._too_large:
            count, first = len(self._too_large), self._too_large[0]
            return [f"{count} file(s) are larger than {self._max_file_bytes} bytes and not indexed, such as {first}"]
        return []

    def fetch(self, key: str, etag: str) -> Found | None:
        answer = self._api.get(below(*self._place, "git", "blobs", etag))
        if answer.status != 200:
            # A force push took the commit away meanwhile, and a collector its blobs: the next listing knows better.
            self._listed = ("", {})
            raise FeedUnavailable(f"{self._repository} has no blob {etag} any more: its branch has moved")
        content = _content(answer.body, etag)
        text = content.decode("utf-8", "replace")
        values = (key, title_of(text, key), None, self._url(key), self._repository, self._branch, etag)
        row = [value.encode() if value is not None else None for value in values]
        # As it came: what is no UTF-8 is parked by whoever renders it, and named.
        row[2] = content
        return Found(etag=etag, row=tuple(row))

    def examine(self) -> Sequence[Examined]:
        try:
            commit = self._head()
            if commit is None:
                return [self._missing()]
            found = self._files(commit)
        except FeedUnavailable as exc:
            return [Examined(ok=False, message=exc.message, hint=exc.hint)]
        where = f"{self._repository}, branch {self._branch}"
        if not found:
            return [Examined(ok=False, message=f"{where}: no file is like paths", hint="see docs/FEEDS.md on patterns")]
        return [Examined(ok=True, message=f"{where}: {len(found)} file(s) to index")]

    def close(self) -> None:
        self._api.close()

    # -- what is there ----------------------------------------------------------------------------------------

    def _head(self) -> str | None:
        """The commit that the branch is at; None if the repository is there and the branch is not."""
        answer = self._api.get(below(*self._place, "branches", self._branch))
        if answer.status == 200:
            return _text(answer.body, "commit", "sha")
        # Somebody who may not see a repository is told the same as where there is none.
        if self._api.get(below(*self._place)).status != 200:
            raise FeedUnavailable(
                f"there is no repository {self._repository}, or the token may not see it",
                hint="correct feed.repository, or give the token read access to its contents",
            )
        return None

    def _missing(self) -> Examined:
        return Examined(
            ok=False,
            message=f"{self._repository} has no branch {self._branch}",
            hint="correct feed.branch; a branch that is deleted leaves an empty collection",
        )

    def _files(self, commit: str) -> dict[str, str]:
        found: dict[str, str] = {}
        self._too_large = []
        for path, sha, size in self._entries(commit):
            if not self._wanted.fullmatch(path):
                continue
            if size > self._max_file_bytes:
                self._too_large.append(path)
                continue
            found[path] = sha
            if len(found) > self._max_documents:
                raise FeedUnavailable(
                    f"{self._repository} has more than {self._max_documents} files that are like paths",
                    hint="raise feed.max_documents, or write narrower paths",
                )
        return found

    def _entries(self, commit: str) -> Iterator[tuple[str, str, int]]:
        tree = self._tree(commit, recursive=True)
        if not tree.get("truncated"):
            yield from (entry[1:] for entry in _members(tree, "") if entry[0] in _FILES)
            return
        # Too large to be told at once: folder by folder.
        folders = [("", commit)]
        for asked in range(_MOST_FOLDERS):
            if not folders:
                return
            above, sha = folders.pop()
            tree = self._tree(sha, recursive=False)
            if tree.get("truncated"):
                raise FeedUnavailable(f"one folder of {self._repository} is too large for GitHub's API")
            for mode, path, entry, size in _members(tree, above):
                if mode == "040000":
                    folders.append((f"{path}/", entry))
                elif mode in _FILES:
                    yield path, entry, size
            log.debug("feed folder listed repository=%s asked=%d", self._repository, asked + 1)
        raise FeedUnavailable(f"{self._repository} has more than {_MOST_FOLDERS} folders")

    def _tree(self, sha: str, *, recursive: bool) -> Mapping[str, Any]:
        answer = self._api.get(below(*self._place, "git", "trees", sha), {"recursive": "1"} if recursive else None)
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise FeedUnavailable(f"{self._repository} does not tell what is in commit {sha}")
        return answer.body

    def _url(self, path: str) -> str:
        return f"{self._web_url}/{self._repository}/blob/{quote(self._branch)}/{quote(path)}"


def web_url_of(api_url: str) -> str:
    """Where people read what an API serves: github.com, or the server that has the API below ``/api/v3``."""
    parts = urlsplit(api_url)
    host = parts.netloc.removeprefix("api.") if parts.hostname == "api.github.com" else parts.netloc
    return f"{parts.scheme}://{host}"


def _members(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, str, str, int]]:
    entries = tree.get("tree")
    if not isinstance(entries, list):
        raise FeedUnavailable("GitHub's answer is not a tree", hint="see feed.api_url")
    for entry in entries:
        mode, path, sha = (_text(entry, name) for name in ("mode", "path", "sha"))
        size = entry.get("size")
        yield mode, above + path, sha, size if isinstance(size, int) else 0


def _content(body: Any, sha: str) -> bytes:
    """The blob's bytes, if they are those of this hash."""
    try:
        content = base64.b64decode(_text(body, "content", empty=True))
    except binascii.Error:
        content = None
    if content is None or hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != sha:
        raise FeedUnavailable(f"what GitHub sent for blob {sha} is not that blob")
    return content


def _text(body: Any, *path: str, empty: bool = False) -> str:
    found = body
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(found, str) or not (found or empty):
        raise FeedUnavailable(f"GitHub's answer lacks {'.'.join(path)}", hint="see feed.api_url")
    return found
