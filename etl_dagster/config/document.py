"""A YAML file as data: line numbers per field, no duplicate keys, environment references filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

FieldPath = tuple[str | int, ...]

_NULL, _TEXT, _TIME = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"
# `$${` is a literal `${`; the last alternative catches what is begun but not well formed.
_REFERENCE = re.compile(
    r"(?P<literal>\$\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-(?:(?!\$\{)[^}])*)?\}|\$\{"
)
# Long quoted parts of the parser's words may be values of the file, hence secrets.
_QUOTED = re.compile(r"'(?!<)[^']{2,}'")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a config file.

    Attributes:
        path: The field, from the top of the file; empty when the file as a whole is meant.
        text: What is wrong with its value; never the value of a secret.
        example: A right one, as it would stand in the file.
    """

    path: FieldPath
    text: str
    example: str = ""
    line: int | None = None


@dataclass(slots=True)
class Document:
    """A file that has been read, with what was wrong with it so far.

    Attributes:
        lines: Line of each field, counted from 1.
        filled: Fields whose value came from the environment.
    """

    data: Any = None
    lines: dict[FieldPath, int] = field(default_factory=dict)
    filled: set[FieldPath] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: FieldPath) -> int | None:
        """Line of the field, or of the nearest one around it."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)


def read(text: str, environ: Mapping[str, str], is_word: Callable[[FieldPath], bool] = lambda _path: False) -> Document:
    """Parse one YAML document and fill in its references.

    Args:
        is_word: Says of which fields the unquoted word ``null`` is the value, and not its absence.
    """
    document = Document()
    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _walk(document, node, (), ())
            _spell(node, (), is_word)
            document.data = loader.construct_document(node)
    except yaml.YAMLError as error:
        document.problems.append(_syntax_problem(error))
    finally:
        loader.dispose()
    document.data = _Filler(document, environ).fill(document.data, ())
    return document


def _walk(document: Document, node: yaml.Node, path: FieldPath, around: tuple[int, ...]) -> None:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in around:
        raise yaml.composer.ComposerError(None, None, "a value contains itself", node.start_mark)
    if isinstance(node, yaml.MappingNode):
        _note_keys(document, node, path)
        for key, value in node.value:
            _walk(document, value, (*path, key.value if isinstance(key.value, str) else "?"), (*around, id(node)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(document, value, (*path, index), (*around, id(node)))


def _spell(node: yaml.Node, path: FieldPath, is_word: Callable[[FieldPath], bool]) -> None:
    """Make text of ``null`` where it is a word, and of dates: the field that wants one says where it is none."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _spell(value, (*path, key.value if isinstance(key.value, str) else "?"), is_word)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _spell(value, (*path, index), is_word)
    elif isinstance(node, yaml.ScalarNode):
        if node.tag == _NULL and node.value.lower() == "null" and is_word(path):
            node.tag, node.value = _TEXT, "null"
        elif node.tag == _TIME:
            node.tag = _TEXT


def _note_keys(document: Document, node: yaml.MappingNode, path: FieldPath) -> None:
    first: dict[Hashable, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        name = key.value if isinstance(key.value, str) else "?"
        document.lines.setdefault((*path, name), line)
        if name in first and name != "?":
            document.problems.append(Problem((*path, name), f"is given twice, first in line {first[name]}", line=line))
        first.setdefault(name, line)


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else None
    column = f" in column {mark.column + 1}" if mark else ""
    if isinstance(error, yaml.composer.ComposerError | yaml.constructor.ConstructorError):
        words = "a value that begins with *, & or ! has to stand in quotes, and a file holds one document"
    else:
        words = _QUOTED.sub("'…'", str(getattr(error, "problem", None) or "a character that YAML does not allow"))
    return Problem((), f"is not valid YAML{column}: {words}", line=line)


class _Filler:
    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self._document = document
        self._environ = environ

    def fill(self, value: Any, path: FieldPath) -> Any:
        match value:
            case str():
                return _REFERENCE.sub(lambda found: self._value(found, path), value)
            case dict():
                return {key: self.fill(item, (*path, key)) for key, item in value.items()}
            case list():
                return [self.fill(item, (*path, index)) for index, item in enumerate(value)]
            case _:
                return value

    def _value(self, found: re.Match[str], path: FieldPath) -> str:
        if found["literal"]:
            return "${"
        self._document.filled.add(path)
        name, default = found["name"], found["default"]
        if name is None:
            self._problem(
                path, "has a reference that is not well formed", "${NAME} or ${NAME:-default}; $${ for itself"
            )
            return found[0]
        value = self._environ.get(name)
        # As in a shell, an empty variable also takes the default.
        if default is not None and not value:
            return str(default[2:])
        if value is None:
            self._problem(path, f"needs the environment variable {name}, which is not set", f"export {name}=…")
            return found[0]
        return value

    def _problem(self, path: FieldPath, text: str, example: str) -> None:
        self._document.problems.append(Problem(path, text, example, self._document.line(path)))
