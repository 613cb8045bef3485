"""PostgreSQL types and values as Arrow has them. No I/O."""

from etl_dagster.arrow.decode import decode_column, read_column
from etl_dagster.arrow.text import binary_array
from etl_dagster.arrow.types import TYPES, arrow_schema, arrow_type, column_type, has_binary_decoder, reads_text

__all__ = [
    "TYPES",
    "arrow_schema",
    "arrow_type",
    "binary_array",
    "column_type",
    "decode_column",
    "has_binary_decoder",
    "read_column",
    "reads_text",
]
