"""The index as tools for language models (Model Context Protocol): over stdio, and at ``/mcp`` of the daemon.

Both ask the daemon over its own HTTP interface, with the token of whoever calls: what a token may see is decided in one
place. The ``mcp`` package comes with the extra ``mcp`` and is loaded by whoever opens one of the two.
"""
