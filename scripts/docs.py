"""Writes those parts of the documentation that follow from the code: ``python scripts/docs.py``.

A part stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; a test holds the committed files to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from datetime import date
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from etl_dagster.arrow.types import column_type  # noqa: E402
from etl_dagster.config import PipelineConfig  # noqa: E402
from etl_dagster.destinations.bigquery.config import BigQueryConfig, TableOptions  # noqa: E402
from etl_dagster.destinations.bigquery.errors import REASONS, Fault  # noqa: E402
from etl_dagster.destinations.bigquery.types import native_type  # noqa: E402
from etl_dagster.destinations.duckdb.config import DuckDbConfig  # noqa: E402
from etl_dagster.destinations.duckdb.encoding import duckdb_type  # noqa: E402
from etl_dagster.destinations.memory.config import MemoryConfig  # noqa: E402
from etl_dagster.errors import ErrorKind  # noqa: E402
from etl_dagster.model import Column, KeyRanges, PgType, TimeWindows, TypeKind, ValuePolicy  # noqa: E402
from etl_dagster.model.choices import NumericRule, TableDefaults  # noqa: E402
from etl_dagster.postgres.config import SourceConfig  # noqa: E402
from etl_dagster.replication import lifecycle  # noqa: E402
from etl_dagster.replication.policy import POLICY  # noqa: E402
from etl_dagster.settings import ReplicationSettings  # noqa: E402
from etl_dagster.store.config import MemoryStoreConfig, PostgresStoreConfig, SqliteStoreConfig  # noqa: E402

_OPTIONAL = {type(None)}


def fields(model: type[BaseModel], prefix: str = "") -> str:
    """Every field of a config, those inside it with their path."""
    rows = [f"| `{path}` | {kind} | {default} | {about} |" for path, kind, default, about in _fields(model, prefix)]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, info in model.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        if inner := _models(info.annotation):
            yield from _united([list(_fields(each, f"{path}.")) for each in inner])
        else:
            yield path, _kind(info.annotation), _default(info), (info.description or "").replace("|", "\\|")


def _models(annotation: Any) -> list[type[BaseModel]]:
    found = [part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    return [part for part in found if part is not NumericRule]


def _united(models: list[list[tuple[str, str, str, str]]]) -> Iterator[tuple[str, str, str, str]]:
    """The rows of several models, of which one is chosen by its `type`."""
    for path in dict.fromkeys(path for rows in models for path, *_ in rows):
        same = [row for rows in models for row in rows if row[0] == path]
        default, about = same[0][2], "; ".join(dict.fromkeys(about for *_, about in same if about))
        if len(same) < len(models):
            types = [rows[0][1] for rows in models if path in {row[0] for row in rows}]
            about = f"{about} (type {', '.join(types)})"
        yield path, ", ".join(dict.fromkeys(kind for _, kind, _, _ in same)), default, about


def _parts(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [part for option in get_args(annotation) for part in _parts(option) if part not in _OPTIONAL]
    return [annotation]


def _kind(annotation: Any) -> str:
    return " or ".join(dict.fromkeys(_plain(part) for part in _parts(annotation)))


def _plain(part: Any) -> str:
    if get_origin(part) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(part))
    if get_origin(part) is tuple:
        return f"list of {_kind(get_args(part)[0])}"
    if get_origin(part) is dict:
        _, value = get_args(part)
        return "see below" if _models(value) else f"{_kind(value)} by name"
    if isinstance(part, type) and issubclass(part, Enum):
        return ", ".join(f"`{member.value}`" for member in part)
    names = {
        NumericRule: "`text`, `decimal(p,s)`",
        str: "text",
        SecretStr: "secret",
        int: "number",
        float: "number",
        bool: "true or false",
        Path: "path",
        date: "day",
    }
    return names[part]


def _default(info: Any) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if value is None:
        return ""
    if value == ():
        return "`[]`"
    return f"`{value.value if isinstance(value, Enum) else str(value).lower() if isinstance(value, bool) else value}`"


# Name, OID and type modifier of what the table of types shows; numeric is precision << 16 | scale, plus four.
_SHOWN: tuple[tuple[str, PgType], ...] = (
    *(
        (name, PgType(oid=oid, name=name))
        for name, oid in (
            ("boolean", 16),
            ("smallint", 21),
            ("integer", 23),
            ("bigint", 20),
            ("oid", 26),
            ("real", 700),
            ("double precision", 701),
        )
    ),
    ("numeric(12,2)", PgType(oid=1700, name="numeric", typmod=(12 << 16 | 2) + 4)),
    ("numeric(30,12)", PgType(oid=1700, name="numeric", typmod=(30 << 16 | 12) + 4)),
    ("numeric(50,10)", PgType(oid=1700, name="numeric", typmod=(50 << 16 | 10) + 4)),
    ("numeric", PgType(oid=1700, name="numeric")),
    *(
        (name, PgType(oid=oid, name=name))
        for name, oid in (
            ("text", 25),
            ("varchar(n)", 1043),
            ("char(n)", 1042),
            ('"char"', 18),
            ("name", 19),
            ("bytea", 17),
            ("uuid", 2950),
            ("json", 114),
            ("jsonb", 3802),
            ("date", 1082),
            ("time", 1083),
            ("timestamp", 1114),
            ("timestamptz", 1184),
            ("interval", 1186),
        )
    ),
    ("an enum", PgType(oid=90001, name="status", kind=TypeKind.ENUM)),
    ("citext", PgType(oid=90002, name="citext")),
    ("geometry, geography (PostGIS)", PgType(oid=90004, name="geometry")),
    ("integer[]", PgType(oid=1007, name="integer[]", kind=TypeKind.ARRAY, element=PgType(oid=23, name="integer"))),
    ("numeric[]", PgType(oid=1231, name="numeric[]", kind=TypeKind.ARRAY, element=PgType(oid=1700, name="numeric"))),
    ("text[]", PgType(oid=1009, name="text[]", kind=TypeKind.ARRAY, element=PgType(oid=25, name="text"))),
    ("timetz", PgType(oid=1266, name="timetz")),
    ("money", PgType(oid=790, name="money")),
    ("inet", PgType(oid=869, name="inet")),
    ("bit(n)", PgType(oid=1560, name="bit")),
    ("xml", PgType(oid=142, name="xml")),
    ("tsvector", PgType(oid=3614, name="tsvector")),
    ("point", PgType(oid=600, name="point")),
    ("int4range", PgType(oid=3904, name="int4range", kind=TypeKind.RANGE)),
    ("inet[]", PgType(oid=1041, name="inet[]", kind=TypeKind.ARRAY, element=PgType(oid=869, name="inet"))),
    ("a composite", PgType(oid=90003, name="address", kind=TypeKind.COMPOSITE)),
)


def types() -> str:
    """PostgreSQL type, Arrow type, DuckDB type, and whether the policy ``text`` makes it text."""
    rows = [_type_row(name, Column(attnum=1, name=name, type=type_)) for name, type_ in _SHOWN]
    return "\n".join(["| PostgreSQL | Arrow | DuckDB | under `values: text` |", "|---|---|---|---|", *rows])


def _type_row(name: str, column: Column) -> str:
    arrow = column_type(column)
    as_text = column_type(column.model_copy(update={"values": ValuePolicy.TEXT}))
    return f"| {name} | `{arrow}` | `{duckdb_type(arrow)}` | {'' if as_text == arrow else f'`{as_text}`'} |"


def bigquery_types() -> str:
    """PostgreSQL type and BigQuery type, also where the column is in the key and under the options that matter."""
    rows = [_bigquery_row(name, Column(attnum=1, name=name, type=type_)) for name, type_ in _SHOWN]
    return "\n".join(["| PostgreSQL | BigQuery | in a key | with options |", "|---|---|---|---|", *rows])


def _bigquery_row(name: str, column: Column) -> str:
    usual = _native(column)
    key = _native(column.model_copy(update={"key_ordinal": 1}))
    others = {f"`{field}: {value}`": _native(column, **{field: value}) for field, value in _BIGQUERY_OPTIONS}
    options = ", ".join(f"{option}: `{type_}`" for option, type_ in others.items() if type_ != usual)
    return f"| {name} | `{usual}` | {'' if key == usual else f'`{key}`'} | {options} |"


_BIGQUERY_OPTIONS = (("json", "string"), ("arrays", "repeated"))


def _native(column: Column, **options: Any) -> str:
    return native_type(column, BigQueryConfig(project="project", dataset="dataset", **options)).native


def bigquery_errors() -> str:
    """What BigQuery's reasons mean, those that mean the same together."""
    faults: dict[Fault, list[str]] = {}
    for reason, fault in REASONS.items():
        faults.setdefault(fault, []).append(f"`{reason}`")
    rows = [
        f"| {', '.join(reasons)} | `{fault.kind}` | {'yes' if fault.again else ''} | {fault.hint} |"
        for fault, reasons in faults.items()
    ]
    return "\n".join(["| reason | kind | tried again at once | what to do |", "|---|---|---|---|", *rows])


def policy() -> str:
    """What the engine does about each kind of error by itself."""
    missing = [kind for kind in ErrorKind if kind not in POLICY]
    assert not missing, missing
    rows = [f"| `{kind}` | {action} |" for kind, action in POLICY.items()]
    return "\n".join(["| kind | action |", "|---|---|", *rows])


def diagram() -> str:
    """The life of a table."""
    return f"```mermaid\n{lifecycle.mermaid().rstrip()}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "source fields": lambda: fields(SourceConfig, "source."),
    "duckdb fields": lambda: fields(DuckDbConfig, "destination."),
    "bigquery fields": lambda: fields(BigQueryConfig, "destination."),
    "bigquery table fields": lambda: fields(TableOptions, "destination.tables.NAME."),
    "bigquery types": bigquery_types,
    "bigquery errors": bigquery_errors,
    "memory fields": lambda: fields(MemoryConfig, "destination."),
    "sqlite fields": lambda: fields(SqliteStoreConfig, "store."),
    "postgres store fields": lambda: fields(PostgresStoreConfig, "store."),
    "memory store fields": lambda: fields(MemoryStoreConfig, "store."),
    "choice fields": lambda: fields(TableDefaults, "defaults."),
    "time fields": lambda: fields(TimeWindows, "partitions."),
    "range fields": lambda: fields(KeyRanges, "partitions."),
    "replication fields": lambda: fields(ReplicationSettings, "replication."),
    "types": types,
    "policy": policy,
    "lifecycle": diagram,
}
_TOP_LEVEL = {"name", "source", "destination", "store", "replication", "defaults", "tables"}


def rendered(text: str) -> str:
    """The text with every part as the code has it now."""
    assert set(PipelineConfig.model_fields) == _TOP_LEVEL, "describe the new field in docs/guide.md"
    return re.sub(
        r"(<!-- begin (.+?) -->\n).*?(<!-- end \2 -->)",
        lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Rewrite the files."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        path.write_text(rendered(path.read_text()))


if __name__ == "__main__":
    main()
