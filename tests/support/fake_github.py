"""A small GitHub: one repository with blobs, trees, commits and branches, and the push payloads that tell of them.

Written from GitHub's documentation of REST (2022-11-28) and of webhook payloads, not from our own code.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from tests.support.vendor import Asked, Vendor

__all__ = ["FakeGithub", "blob_sha"]

ZERO = "0" * 40


def blob_sha(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeGithub(Vendor):
    """``truncate_over``: a recursive tree with more entries is cut."""

    def __init__(self, repository: str = "octo/handbook") -> None:
        super().__init__()
        self.repository = repository
        self.blobs: dict[str, bytes] = {}
        #: What each commit holds, by path: mode, type, hash.
        self.commits: dict[str, dict[str, tuple[str, str, str]]] = {}
        self._folders: dict[str, dict[str, tuple[str, str, str]]] = {}
        self.branches: dict[str, list[str]] = {}
        self.truncate_over: int | None = None

    # -- what people do --------------------------------------------------------------------------------------

    def push(
        self, files: Mapping[str, str | bytes], branch: str = "main", links: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The branch now holds exactly these files; returns the payload of the push."""
        with self.lock:
            tree = {}
            for path, content in files.items():
                raw = content.encode() if isinstance(content, str) else content
                sha = blob_sha(raw)
                self.blobs[sha] = raw
                tree[path] = ("100644", "blob", sha)
            for path, target in (links or {}).items():
                self.blobs[blob_sha(target.encode())] = target.encode()
                tree[path] = ("120000", "blob", blob_sha(target.encode()))
            before = self.branches.get(branch, [ZERO])[-1]
            commit = hashlib.sha1(repr((before, sorted(tree.items()), len(self.commits))).encode()).hexdigest()
            old = self.commits.get(before, {})
            self.commits[commit] = tree
            self.branches.setdefault(branch, []).append(commit)
            return self._payload(branch, before, commit, old, tree)

    def delete_branch(self, branch: str = "main") -> dict[str, Any]:
        with self.lock:
            before = self.branches.pop(branch)[-1]
            return {**self._payload(branch, before, ZERO, {}, {}), "deleted": True, "commits": [], "head_commit": None}

    def head(self, branch: str = "main") -> dict[str, bytes]:
        """The files of the branch, as a checkout would have them."""
        with self.lock:
            tree = self.commits[self.branches[branch][-1]] if branch in self.branches else {}
            return {path: self.blobs[sha] for path, (mode, _, sha) in tree.items() if mode == "100644"}

    def _payload(
        self, branch: str, before: str, after: str, old: Mapping[str, Any], new: Mapping[str, Any]
    ) -> dict[str, Any]:
        commit = {
            "id": after,
            "tree_id": after,
            "distinct": True,
            "message": "Edit",
            "timestamp": "2026-11-28T01:00:00Z",
            "url": f"https://github.com/{self.repository}/commit/{after}",
            "author": {"name": "Mona", "email": "mona@example.com", "username": "mona"},
            "committer": {"name": "Mona", "email": "mona@example.com", "username": "mona"},
            "added": sorted(new.keys() - old.keys()),
            "removed": sorted(old.keys() - new.keys()),
            "modified": sorted(path for path in new.keys() & old.keys() if new[path] != old[path]),
        }
        owner, name = self.repository.split("/")
        return {
            "ref": f"refs/heads/{branch}",
            "before": before,
            "after": after,
            "repository": {
                "id": 186853002,
                "name": name,
                "full_name": self.repository,
                "private": True,
                "owner": {"name": owner, "login": owner},
                "html_url": f"https://github.com/{self.repository}",
                "default_branch": "main",
            },
            "pusher": {"name": "mona", "email": "mona@example.com"},
            "sender": {"login": "mona", "id": 1, "type": "User"},
            "created": before == ZERO,
            "deleted": False,
            "forced": False,
            "base_ref": None,
            "compare": f"https://github.com/{self.repository}/compare/{before[:12]}...{after[:12]}",
            "commits": [commit],
            "head_commit": commit,
        }

    # -- what the API answers --------------------------------------------------------------------------------

    def refused(self) -> tuple[int, Any]:
        return 401, {"message": "Bad credentials", "documentation_url": "https://docs.github.com/rest"}

    def answer(self, asked: Asked) -> tuple[int, Any]:
        if asked.path[:3] != ("repos", *self.repository.split("/")):
            return self._not_found()
        match asked.path[3:]:
            case ():
                return 200, {"full_name": self.repository, "default_branch": "main", "private": True}
            case ("branches", branch):
                return self._branch(branch)
            case ("git", "trees", sha):
                return self._tree(sha, recursive="recursive" in asked.query)
            case ("git", "blobs", sha) if sha in self.blobs:
                text = base64.encodebytes(self.blobs[sha]).decode()
                return 200, {"sha": sha, "size": len(self.blobs[sha]), "content": text, "encoding": "base64"}
        return self._not_found()

    def _branch(self, branch: str) -> tuple[int, Any]:
        commits = self.branches.get(branch)
        if commits is None:
            return 404, {"message": "Branch not found", "status": "404"}
        return 200, {"name": branch, "commit": {"sha": commits[-1], "commit": {}}, "protected": False}

    def _tree(self, sha: str, *, recursive: bool) -> tuple[int, Any]:
        files = self.commits.get(sha) if sha in self.commits else self._folders.get(sha)
        if files is None:
            return self._not_found()
        if recursive:
            entries = [self._entry(path, *entry) for path, entry in sorted(files.items())]
            cut = self.truncate_over is not None and len(entries) > self.truncate_over
            shown = entries[: self.truncate_over] if cut else entries
            return 200, {"sha": sha, "url": f"{self.url}/trees/{sha}", "tree": shown, "truncated": cut}
        here: dict[str, dict[str, tuple[str, str, str]]] = {}
        entries = []
        for path, entry in sorted(files.items()):
            name, slash, rest = path.partition("/")
            if slash:
                here.setdefault(name, {})[rest] = entry
            else:
                entries.append(self._entry(name, *entry))
        for name, inside in here.items():
            folder = hashlib.sha1(repr(sorted(inside.items())).encode()).hexdigest()
            self._folders[folder] = inside
            entries.append({"path": name, "mode": "040000", "type": "tree", "sha": folder, "url": self.url})
        return 200, {"sha": sha, "url": f"{self.url}/trees/{sha}", "tree": entries, "truncated": False}

    def _entry(self, path: str, mode: str, kind: str, sha: str) -> dict[str, Any]:
        # A hostile server could name any address: nobody may follow it.
        url = f"http://169.254.169.254/blobs/{sha}"
        return {"path": path, "mode": mode, "type": kind, "sha": sha, "size": len(self.blobs[sha]), "url": url}

    def _not_found(self) -> tuple[int, Any]:
        return 404, {"message": "Not Found", "documentation_url": "https://docs.github.com/rest", "status": "404"}
