"""The errors that the library raises, read from its sources."""

import ast
import re
from collections.abc import Iterator

GAP = "…"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def messages(source: str) -> Iterator[str]:
    """The text of every error that Python source raises, with `…` where it depends on the case."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    by_name = {function.name: function for function in functions}
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _is_named(node.exc) and node.exc.args:
                yield from _texts(node.exc.args[0], function, by_name)


def matches(shown: str, message: str) -> bool:
    """Whether a message begins with what is shown of it."""
    return re.match(".*?".join(map(re.escape, shown.split(GAP))), message, re.DOTALL) is not None


def _is_named(call: ast.Call) -> bool:
    """Whether a class is raised that the library names; `typer.Exit` ends a command, for instance."""
    return isinstance(call.func, ast.Name)


def _texts(node: ast.expr, function: Function, functions: dict[str, Function]) -> Iterator[str]:
    """A message, or all that the function that makes it returns."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
        maker = functions[node.func.id]
        for returned in (part for part in ast.walk(maker) if isinstance(part, ast.Return) and part.value):
            yield _text(returned.value, maker)
    else:
        yield _text(node, function)


def _text(node: ast.expr, function: Function) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, function) for part in node.values)
    if isinstance(node, ast.FormattedValue) and node.conversion == -1:
        return _text(node.value, function)
    if isinstance(node, ast.BinOp):
        return _text(node.left, function) + _text(node.right, function)
    if isinstance(node, ast.Name):
        for part in ast.walk(function):  # a text with a name of its own, as the beginning of several messages has
            if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == node.id and _is_text(part.value):
                return _text(part.value, function)
    return GAP


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
