"""From a validation error to what its reader needs: the field, what is wrong with its value, a right one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from etl_dagster.config.document import Document, FieldPath, Problem
from etl_dagster.config.model import NESTED_ERROR
from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.errors import EtlError

_Model = type[BaseModel]

_TEXTS: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "path_type": "must be a path",
    "model_type": "must be a group of fields",
    "model_attributes_type": "must be a group of fields",
    "dict_type": "must be a group of fields",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "date_from_datetime_inexact": "must be a day, without a time of day",
}
# Where the value helps to see what is wrong and is never a secret by its type.
_SHOWN = frozenset(
    [
        "int_parsing",
        "int_from_float",
        "float_parsing",
        "bool_parsing",
        "enum",
        "literal_error",
        "string_pattern_mismatch",
        "greater_than",
        "greater_than_equal",
        "less_than",
        "less_than_equal",
    ]
)
_SHOWN_LENGTH = 60
# How pydantic says that a name in a group is meant, and not what it stands for.
_KEY = "[key]"
_SECRET_WORDS = ("password", "secret", "token", "key", "dsn", "credential")
# For fields that bring no example of their own.
_EXAMPLES: Mapping[str, Any] = {
    "dsn": "${SOURCE_DSN}",
    "host": "db.example.com",
    "port": 5432,
    "database": "shop",
    "user": "etl",
    "password": "${SOURCE_PASSWORD}",
    "tables": ["public.orders", "sales.*"],
    "exclude": ["public.audit_*"],
    "schemas": ["public"],
    "connection": {"dsn": "${SOURCE_DSN}"},
    "publication": {"schemas": ["public"]},
    "slot": {"name": "etl_shop"},
    "tls": {"mode": "verify-full", "root_cert": "ca.pem"},
    "root_cert": "ca.pem",
    "cert": "client.pem",
    "key": "client.key",
    "type": "duckdb",
    "path": "shop.duckdb",
    "heartbeat_seconds": 60,
}


@dataclass(frozen=True, slots=True)
class _Place:
    """A field found in the models: its path in the file, its value there, and who declares it.

    An entry of a group with free names is no field, but ``entry_of`` one; ``owner`` declares what stands in it.
    """

    path: FieldPath
    value: Any
    owner: _Model | None
    field: FieldInfo | None
    entry_of: FieldInfo | None = None


def problems(error: ValidationError, model: _Model, document: Document) -> list[Problem]:
    """Every problem of the error that the document does not have already, in the order of the fields."""
    known = {problem.path for problem in document.problems}
    found = list(_problems(error, model, document, (), document.data))
    return [problem for problem in found if not any(problem.path[:n] in known for n in range(1, len(problem.path) + 1))]


def example(name: str, field: FieldInfo, given: object = None) -> str:
    """A right value for the field, as a line of YAML, of the type of what was given; empty when there is none."""
    candidates = list(_candidates(name, field))
    type_ = given.get("type") if isinstance(given, dict) else None
    alike = (value for value in candidates if type_ and isinstance(value, dict) and value.get("type") == type_)
    for value in (*alike, *candidates):
        return f"{name}: {_yaml(value)}"
    return ""


def _problems(
    error: ValidationError, model: _Model, document: Document, prefix: FieldPath, data: Any
) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        if detail["type"] == "default_factory_not_called":  # follows from another problem
            continue
        union = ("type",) if detail["type"].startswith("union_tag") else ()
        location = detail["loc"][:-1] if detail["loc"][-1:] == (_KEY,) else detail["loc"]
        place = _locate((*location, *union), model, data)
        if union:
            place = replace(place, field=_locate(location, model, data).field)
        nested = detail.get("ctx", {}).get("error")
        if isinstance(nested, ValidationError):
            inner = _destination_model(nested.title)
            yield from _problems(nested, inner, document, (*prefix, *place.path), place.value)
        else:
            path = (*prefix, *place.path)
            text, right = _describe(dict(detail), place, path in document.filled)
            yield Problem(path, text, right, document.line(path))


def _describe(detail: dict[str, Any], place: _Place, filled: bool) -> tuple[str, str]:
    kind, context = detail["type"], detail.get("ctx", {})
    name = str(place.path[-1]) if place.path else ""
    if place.entry_of is not None:
        return _describe_entry(detail, place)
    if kind == "extra_forbidden":
        return _unknown_field(name, place.owner)
    if kind == NESTED_ERROR and isinstance(context["error"], EtlError):
        return context["error"].message, context["error"].hint
    if kind.startswith("union_tag"):
        return _wrong_type(kind, context, place, filled)
    right = example(_field_name(place), place.field, place.value) if place.field else ""
    if kind == "value_error":
        return str(context["error"]), right
    if kind == "too_long":
        return f"must have at most {context['max_length']} entries", right
    text = _TEXTS.get(kind) or _lowered(detail["msg"])
    if kind == "missing":
        return text, right
    return text + _found(place.value, kind in _SHOWN and not filled and not _is_secret(place)), right


def _wrong_type(kind: str, context: Mapping[str, Any], place: _Place, filled: bool) -> tuple[str, str]:
    """What is wrong with the ``type`` of a group; the place has the field of the group."""
    examples = place.field.examples if place.field else None
    right = next((f"type: {group['type']}" for group in examples or ()), "")
    if kind == "union_tag_not_found":
        return "is missing", right
    if isinstance(place.value, str) and not filled:
        right = _closest(place.value, re.findall(r"'([^']*)'", context["expected_tags"])) or right
    return f"must be one of {context['expected_tags']}{_found(place.value, not filled)}", right


def _closest(value: str, tags: Sequence[str]) -> str:
    close = get_close_matches(re.sub(r"[^a-z0-9]", "", value.lower()), tags, n=1)
    return f"type: {close[0]}" if close else ""


def _describe_entry(detail: dict[str, Any], place: _Place) -> tuple[str, str]:
    """What is wrong with an entry as a whole, or with its name."""
    examples = place.entry_of.examples if place.entry_of else None
    right = next((f"{name}: {_yaml(value)}" for group in examples or () for name, value in group.items()), "")
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"]), right
    if detail["loc"][-1] == _KEY:
        return "has a name that is not text: put it in quotes", right
    return (_TEXTS.get(detail["type"]) or _lowered(detail["msg"])) + _found(place.value, shown=False), right


def _lowered(message: str) -> str:
    return message.replace("Input should", "must", 1).replace("String should", "must", 1)


def _found(value: object, shown: bool) -> str:
    match value:
        case None:
            return ", but is empty"
        case str() if shown and len(value) <= _SHOWN_LENGTH:
            return f", but is {value!r}"
        case bool() | int() | float() if shown:
            return f", but is {json.dumps(value)}"
        case str():
            return ", but is text" if value else ", but is empty"
        case bool():
            return ", but is true or false: put it in quotes if it is meant as text"
        case dict():
            return ", but is a group of fields"
        case list():
            return ", but is a list"
        case _:
            return ", but is a number or date: put it in quotes if it is meant as text"


def _unknown_field(name: str, owner: _Model | None) -> tuple[str, str]:
    fields = _named_fields(owner) if owner else {}
    close = get_close_matches(name, fields, n=1, cutoff=0.5)
    if not close:
        return f"is not a known field; known are {', '.join(sorted(fields))}", ""
    return f"is not a known field; did you mean {close[0]}?", example(close[0], fields[close[0]])


def _locate(location: tuple[str | int, ...], model: _Model, data: Any) -> _Place:
    """Follow an error's location, which also names union members, through the data, which does not."""
    place = _Place((), data, model, None)
    for position, name in enumerate(location):
        missing = position == len(location) - 1 and isinstance(name, str) and not _is_tag(place, name)
        if missing or _inside(place, name):
            place = _step(place, name)
    return place


def _inside(place: _Place, name: str | int) -> bool:
    if isinstance(place.value, dict):
        return name in place.value
    return isinstance(place.value, list) and isinstance(name, int) and name < len(place.value)


def _is_tag(place: _Place, name: str) -> bool:
    return isinstance(place.value, dict) and place.value.get("type") == name


def _step(place: _Place, name: str | int) -> _Place:
    value = place.value[name] if _inside(place, name) else None
    if place.field is not None and get_origin(place.field.annotation) is dict:
        return _Place((*place.path, name), value, place.owner, None, place.field)
    if isinstance(name, int):
        return _Place((*place.path, name), value, place.owner, place.field)
    field = _named_fields(place.owner).get(name) if place.owner else None
    owner = _model_of(field.annotation, value) if field else None
    # An unknown or plain field belongs to the model around it.
    return _Place((*place.path, name), value, owner or place.owner, field)


def _named_fields(model: _Model) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _field_name(place: _Place) -> str:
    return str(next(name for name in reversed(place.path) if isinstance(name, str)))


def _model_of(annotation: Any, value: Any) -> _Model | None:
    models = [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    if len(models) == 1:
        return models[0]
    type_ = value.get("type") if isinstance(value, dict) else None
    return next((model for model in models if model.model_fields["type"].default == type_), None)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _destination_model(title: str) -> _Model:
    def below(model: type[DestinationConfig]) -> Iterator[type[DestinationConfig]]:
        yield model
        for subclass in model.__subclasses__():
            yield from below(subclass)

    return next((model for model in below(DestinationConfig) if model.__name__ == title), DestinationConfig)


def _is_secret(place: _Place) -> bool:
    if place.field is not None and SecretStr in _parts(place.field.annotation):
        return True
    return any(word in str(name).lower() for name in place.path for word in _SECRET_WORDS)


def _candidates(name: str, field: FieldInfo) -> Iterator[Any]:
    yield from field.examples or ()
    if name in _EXAMPLES:
        yield _EXAMPLES[name]
    for part in _parts(field.annotation):
        if get_origin(part) is Literal:
            yield get_args(part)[0]
        elif isinstance(part, type) and issubclass(part, Enum):
            yield next(iter(part)).value
    default = field.get_default(call_default_factory=False)
    if isinstance(default, bool | int | float | str | Path):
        yield default


def _yaml(value: Any, special: str = "") -> str:
    """In flow style, quoted only where it has to be; ``special`` are characters that mean something inside a group."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key}: {_yaml(item, '{},[]')}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(_yaml(item, "{},[]") for item in value) + "]"
        case bool() | int() | float():
            return json.dumps(value)
        case _:
            text = str(value)
            plain = text and not text.startswith("*") and not any(character in text for character in special)
            return text if plain else json.dumps(text)
