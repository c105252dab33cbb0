"""Makes mutants of a module: one small change each, of the kinds that a commit protocol would not survive. Pure.

Left alone: text, logs, metrics, failpoints, annotations and docstrings, which no promise hangs on.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants"]

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_EXTREMES = {"max": "min", "min": "max", "any": "all", "all": "any"}
#: Calls that say something and do nothing.
_IDLE = ("log.", "metrics.", "hit(", "hit_")


@dataclass(frozen=True)
class Mutant:
    """``name`` is the same as long as its function stays as it is: function, original, change, which of several."""

    name: str
    line: int
    source: str


def mutants(source: str, functions: frozenset[str] | None = None) -> Iterator[Mutant]:
    """Every mutant of a module; with ``functions`` only of those, by their plain names."""
    tree = ast.parse(source)
    seen: dict[str, int] = {}
    for function in _functions(tree):
        if functions is not None and function.name not in functions:
            continue
        for node, what, change in list(_changes(function)):
            name = f"{function.name}: {what}"
            seen[name] = seen.get(name, 0) + 1
            mutated = _with(tree, node, change)
            yield Mutant(f"{name} ({seen[name]})" if seen[name] > 1 else name, getattr(node, "lineno", 0), mutated)


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods; those inside others belong to them."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (found for found in inner if isinstance(found, ast.FunctionDef))


def _changes(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, str, Callable[[ast.AST], ast.AST | None]]]:
    for statement in function.body:
        for node in ast.walk(statement):
            if not _is_idle(node):
                for what, change in _of(node):
                    yield node, what, change


def _is_idle(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith(_IDLE)


def _of(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST | None]]]:
    said = _short(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        other = _COMPARISONS[type(node.ops[0])]
        yield f"{said} with {other.__name__}", lambda n: _set(n, "ops", [other()])
    if isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            yield f"{said} without part {i + 1}", lambda n, i=i: _without_part(n, i)  # type: ignore[misc]
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield f"if {_short(node.test)} negated", lambda n: _set(n, "test", ast.UnaryOp(ast.Not(), n.test))  # type: ignore[attr-defined]
    if isinstance(node, ast.comprehension) and node.ifs:
        yield f"comprehension without {_short(node.ifs[0])}", lambda n: _set(n, "ifs", [])
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        operator = _ARITHMETIC[type(node.op)]
        yield f"{said} with {operator.__name__}", lambda n: _set(n, "op", operator())
    if isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{said} becomes {value}", lambda n: _set(n, "value", value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _EXTREMES:
        name = _EXTREMES[node.func.id]
        yield f"{said} with {name}", lambda n: _set(n, "func", ast.Name(name, ast.Load()))
    if isinstance(node, ast.List | ast.Tuple) and any(isinstance(e, ast.Starred) for e in node.elts):
        for i in range(len(node.elts)):
            yield f"{said} without part {i + 1}", lambda n, i=i: _set(n, "elts", [*n.elts[:i], *n.elts[i + 1 :]])  # type: ignore[attr-defined,misc]
    yield from _of_statement(node, said)


def _of_statement(node: ast.AST, said: str) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST | None]]]:
    removable = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    assigned = isinstance(node, ast.Assign) and not any(isinstance(t, ast.Name | ast.Tuple) for t in node.targets)
    if removable or assigned or isinstance(node, ast.AugAssign | ast.Raise | ast.Continue | ast.Break):
        yield f"{said} removed", lambda _: ast.Pass()
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield f"{said} returns None", lambda n: _set(n, "value", ast.Constant(None))


def _set(node: ast.AST, attribute: str, value: object) -> ast.AST:
    setattr(node, attribute, value)
    return node


def _without_part(node: ast.AST, place: int) -> ast.AST:
    assert isinstance(node, ast.BoolOp)
    rest = [value for i, value in enumerate(node.values) if i != place]
    return rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _with(tree: ast.Module, node: ast.AST, change: Callable[[ast.AST], ast.AST | None]) -> str:
    """The module's source with this one node changed."""
    path = _path_to(tree, node)
    copied = copy.deepcopy(tree)
    _replace(copied, path, change)
    return ast.unparse(ast.fix_missing_locations(copied))


def _path_to(tree: ast.AST, wanted: ast.AST) -> list[tuple[str, int | None]]:
    for field, value in ast.iter_fields(tree):
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if child is wanted:
                return [(field, i)]
            if isinstance(child, ast.AST) and (rest := _path_to(child, wanted)):
                return [(field, i), *rest]
    return []


def _replace(tree: ast.AST, path: list[tuple[str, int | None]], change: Callable[[ast.AST], ast.AST | None]) -> None:
    for field, i in path[:-1]:
        tree = getattr(tree, field) if i is None else getattr(tree, field)[i]
    field, i = path[-1]
    if i is None:
        setattr(tree, field, change(getattr(tree, field)))
    else:
        getattr(tree, field)[i] = change(getattr(tree, field)[i])


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 80 else text[:77] + "..."
