"""Retrievers of other libraries that read their own writes. One module for each library, and its extra."""
