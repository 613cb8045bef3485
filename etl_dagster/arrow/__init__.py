"""The one mapping from PostgreSQL types to Arrow, and the decoding of values into it. No I/O."""

from etl_dagster.arrow.decode import decode_column
from etl_dagster.arrow.text import binary_array
from etl_dagster.arrow.types import TYPES, arrow_schema, arrow_type, has_binary_decoder

__all__ = ["TYPES", "arrow_schema", "arrow_type", "binary_array", "decode_column", "has_binary_decoder"]
