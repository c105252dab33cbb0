"""What the documents of each kind of feed consist of; the first column is the key."""

from __future__ import annotations

__all__ = ["COLUMNS", "GITHUB"]

GITHUB = ("path", "title", "body", "url", "repository", "branch", "sha")

COLUMNS = {"github": GITHUB}
