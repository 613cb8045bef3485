"""How a config file names tables."""

from __future__ import annotations

import fnmatch
import re

from etl_dagster.model.table import FrozenModel, TableId


class TablePattern(FrozenModel):
    """One entry of a table list, taken apart: each part is matched literally but for ``*``.

    A part in double quotes is wholly literal, dots and stars included. Case counts: nothing is folded.
    """

    schema_glob: str
    table_glob: str
    exact: TableId | None = None

    @classmethod
    def parse(cls, text: str) -> TablePattern:
        """Read ``schema.table``; the schema is ``public`` when it is left out.

        Raises:
            ValueError: The text names no table.
        """
        parts = _PARTS.fullmatch(text)
        if parts is None:
            raise ValueError(f'{text!r} is not a table: write schema.table, schema.* or "Odd.schema"."Table name"')
        schema, table = parts["schema"] or "public", parts["table"]
        exact = None if _is_glob(schema) or _is_glob(table) else TableId(_literal(schema), _literal(table))
        return cls(schema_glob=_glob(schema), table_glob=_glob(table), exact=exact)

    @classmethod
    def of_schema(cls, schema: str) -> TablePattern:
        """All tables of a schema, whose name is taken literally."""
        return cls(schema_glob=_escaped(schema, r"[*?\[]"), table_glob="*")

    def matches(self, table: TableId) -> bool:
        """Whether the pattern names this table."""
        return fnmatch.fnmatchcase(table.schema, self.schema_glob) and fnmatch.fnmatchcase(table.name, self.table_glob)


_PART = r'"(?:[^"]|"")+"|[^".]+'
_PARTS = re.compile(rf"(?:(?P<schema>{_PART})\.)?(?P<table>{_PART})")


def _is_glob(part: str) -> bool:
    return not part.startswith('"') and "*" in part


def _literal(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def _glob(part: str) -> str:
    """As an fnmatch pattern in which only an unquoted ``*`` is special."""
    return _escaped(_literal(part), r"[*?\[]") if part.startswith('"') else _escaped(part, r"[?\[]")


def _escaped(text: str, special: str) -> str:
    return re.sub(f"({special})", r"[\1]", text)
