"""What things are called in BigQuery.

Column names may hold what BigQuery calls flexible column names: letters, digits and marks of any script, connectors,
dashes, spaces and some signs. Table names may hold less. What is not allowed becomes ``_``; names that are the same
afterwards are refused where they meet, not told apart by something that nobody would find again.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.model import TableId

# Names of tables that only we use begin like this; live ones never do.
INTERNAL = "_etl_"

# https://cloud.google.com/bigquery/docs/schemas#flexible-column-names, as categories of Unicode.
_LETTERS_AND_DIGITS = frozenset({"L", "N", "M"})
_JOINTS = frozenset({"Pc", "Pd"})
_SIGNS = frozenset("&%=+:'<>#| ")
# https://cloud.google.com/bigquery/docs/schemas#column_names, and what change data capture keeps for itself.
_RESERVED = (
    "_change_type",
    "_change_sequence_number",
    "_table_",
    "_file_",
    "_partition",
    "_row_timestamp",
    "__root__",
    "_colidentifier",
)
_BEFORE_RESERVED = "_ETL"
_BEFORE_INTERNAL = "t"


def quoted(name: str) -> str:
    """An identifier as SQL takes it, whatever its characters."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def bare(ref: str) -> str:
    """A table's quoted name as the API takes it."""
    return ref.strip("`")


def fold(name: str) -> str:
    """A column's name as BigQuery compares it, which ignores case."""
    return name.lower()


@dataclass(frozen=True, slots=True)
class Names:
    """The names in the dataset of one config."""

    config: BigQueryConfig

    def table_name(self, table: TableId) -> str:
        """Name of a live table within the dataset; two tables can have the same one."""
        name = self.config.table_name.format(schema=table.schema, table=table.name)
        name = "".join(character if _in_table_name(character) else "_" for character in name)
        return _BEFORE_INTERNAL + name if name.lower().startswith(INTERNAL) else name

    def live(self, table: TableId) -> str:
        """A live table in SQL."""
        return quoted(f"{self.config.project}.{self.config.dataset}.{self.table_name(table)}")

    def internal(self, name: str) -> str:
        """A table of our own in SQL."""
        return quoted(f"{self.config.project}.{self.config.internal_dataset or self.config.dataset}.{INTERNAL}{name}")

    def column(self, name: str) -> str:
        """A column's name in a live table; two columns can have the same one.

        PostgreSQL's names are far shorter than the 300 characters that BigQuery allows.
        """
        name = "".join(character if _in_column_name(character) else "_" for character in name)
        return _BEFORE_RESERVED + name if fold(name).startswith(_RESERVED) else name


def _in_table_name(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in _LETTERS_AND_DIGITS or category in _JOINTS or category == "Zs"


def _in_column_name(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in _LETTERS_AND_DIGITS or category in _JOINTS or character in _SIGNS
