"""The pgoutput protocol, version 1: bytes in, `etl_dagster.model.ChangeSet` out. No I/O."""

from etl_dagster.pgoutput.decoder import StreamDecoder
from etl_dagster.pgoutput.evolution import keeps_values
from etl_dagster.pgoutput.messages import Relation, RelationColumn, Truncate

__all__ = ["Relation", "RelationColumn", "StreamDecoder", "Truncate", "keeps_values"]
