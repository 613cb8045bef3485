"""Tables as they are named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from etl_dagster.errors import ConfigError
from etl_dagster.model import TableId, TablePattern


def matching_tables(pipeline: str, name: str, known: Sequence[TableId]) -> list[TableId]:
    """The known tables that a name or pattern means.

    Raises:
        ConfigError: There is none.
    """
    try:
        pattern = TablePattern.parse("*.*" if name == "*" else name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if found := [table for table in known if pattern.matches(table)]:
        return found
    raise ConfigError(f"Pipeline {pipeline} has no table {pattern.exact or name}", hint=_suggestion(name, known))


def _suggestion(name: str, known: Sequence[TableId]) -> str:
    names = sorted(map(str, known))
    close = get_close_matches(str(TableId.parse(name)), names, n=1)
    return f"Did you mean {close[0]}?" if close else f"Its tables are: {', '.join(names)}"
