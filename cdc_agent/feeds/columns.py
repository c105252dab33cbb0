"""What the documents of each kind of feed consist of; the first column is the key."""

from __future__ import annotations

__all__ = ["COLUMNS", "GITHUB", "NOTION"]

GITHUB = ("path", "title", "body", "url", "repository", "branch", "sha")

NOTION = ("id", "title", "body", "properties", "url", "parent", "created_at", "edited_at")

COLUMNS = {"github": GITHUB, "notion": NOTION}
