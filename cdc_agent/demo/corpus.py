"""Real text that is on every machine which runs this: the documentation that Python's standard library carries.

Docstrings are read from the source files, nothing is imported; one long article comes from the language reference
(``pydoc_data``). People wrote it, people search for it, and the PSF licence lets anybody use it.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path

from cdc_agent.errors import CdcAgentError

__all__ = ["LONG_TITLE", "SHORTEN_TITLE", "Article", "load_corpus"]

#: The article that the story edits.
SHORTEN_TITLE = "textwrap.shorten(text, width)"
#: The article of many pages, and its name in the language reference.
LONG_TITLE = "Python reference: the debugger"
_LONG_TOPIC = "debugger"

#: The parameters that callers do not pass.
_OWN = frozenset({"self", "cls"})
#: Characters of a docstring that says something and still is about one chunk.
_LENGTHS = range(150, 1200)
_MODULES = {
    "text": "textwrap difflib string re fnmatch gettext locale codecs html html.parser pprint tokenize",
    "numbers": "statistics random fractions secrets ipaddress datetime calendar sched timeit",
    "structures": "collections heapq bisect queue graphlib copy weakref functools contextlib dataclasses enum pickle",
    "files": "shutil pathlib os tempfile glob filecmp fileinput zipfile tarfile gzip bz2 shelve configparser mimetypes",
    "network": "socket ssl http.client http.server http.cookiejar urllib.parse urllib.request smtplib imaplib ftplib"
    " socketserver email.message email.utils email.header xmlrpc.server",
    "concurrency": "threading subprocess asyncio.locks asyncio.tasks asyncio.queues asyncio.streams asyncio.events"
    " selectors multiprocessing.pool concurrent.futures._base",
    "tools": "logging logging.handlers argparse optparse unittest.case unittest.mock doctest pdb bdb inspect traceback"
    " ast pkgutil warnings platform webbrowser xml.etree.ElementTree turtle tkinter",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Article:
    """One row of the demo's table."""

    title: str
    body: str
    category: str


def load_corpus(count: int) -> list[Article]:
    """``count`` articles, or as many as there are; always the same ones. The two that the story needs come first."""
    articles = {article.title: article for article in _taking_turns()}
    if SHORTEN_TITLE not in articles:
        raise CdcAgentError(
            "this Python has no sources of its standard library, the demo's text",
            hint="run the demo with an ordinary Python installation",
        )
    needed = [articles.pop(SHORTEN_TITLE), _long_article()]
    return needed + list(islice(articles.values(), count - len(needed)))


def _taking_turns() -> Iterator[Article]:
    """One article of each module, then the next one of each, so that a small corpus is as varied as a large one."""
    modules = [_articles_of(name, category) for category, names in _MODULES.items() for name in names.split()]
    rounds = chain.from_iterable(zip_longest(*modules))
    return (article for article in rounds if article is not None)


def _articles_of(module: str, category: str) -> Iterator[Article]:
    source = _source_of(module)
    if source is None:
        return
    for title, docstring in _docstrings(ast.parse(source), module):
        if len(docstring) in _LENGTHS:
            yield Article(title=title, body=docstring, category=category)


def _source_of(module: str) -> str | None:
    """Not every Python has every module, nor in the same file."""
    base = Path(sysconfig.get_paths()["stdlib"], *module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return None


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """The module's own, then those of its public classes, functions and methods."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield name + _parameters(node), ast.get_docstring(node) or ""
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            child_name = getattr(child, "name", "_")
            if not child_name.startswith("_"):
                yield from _docstrings(child, f"{name}.{child_name}")


def _parameters(node: ast.AST) -> str:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args) if argument.arg not in _OWN]
    return f"({', '.join(names)})"


def _long_article() -> Article:
    # Half a megabyte, wanted by the demo alone.
    from pydoc_data.topics import topics

    return Article(title=LONG_TITLE, body=topics[_LONG_TOPIC], category="tools")
