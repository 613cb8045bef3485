"""From tables to asset keys and specs; subclass `ReplicationTranslator` to have it another way."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import dagster as dg

from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.errors import ConfigError
from etl_dagster.model import Landing, TableChoices, TableId, TableSchema
from etl_dagster.orchestration.metadata import Metadata, column_schema
from etl_dagster.orchestration.names import CONSOLE, LANDING_TAG, safe_name
from etl_dagster.orchestration.partitions import Definition, Rule, partitions_for

Tables = Mapping[TableId, TableSchema | None]
_LANDING_WORDS = {
    Landing.MIRROR: "",
    Landing.SOFT_DELETE: "; deleted rows stay, marked",
    Landing.CHANGELOG: "; every change is a row",
}


@dataclass(frozen=True)
class ReplicationTranslator:
    """Says what the assets of a table look like.

    Every table has three: the external source table, its partitioned sync (initial copy, re-sync, backfill), and the
    live table downstream of it. Keys have to be unique and of letters, digits and underscores.

    Attributes:
        pipeline: Name of the pipeline.
        destination_kind: Kind that the destination's tables show, for instance ``duckdb``.
        destination: Where the live tables are, if it is known; then they show their names there.
    """

    pipeline: str
    destination_kind: str
    destination: DestinationConfig | None = None

    def source_key(self, table: TableId) -> dg.AssetKey:
        """Key of the table at the source."""
        return dg.AssetKey([safe_name(self.pipeline), "source", *_parts(table)])

    def sync_key(self, table: TableId) -> dg.AssetKey:
        """Key of the table's copies."""
        return dg.AssetKey([safe_name(self.pipeline), "sync", *_parts(table)])

    def live_key(self, table: TableId) -> dg.AssetKey:
        """Key of the live table at the destination."""
        return dg.AssetKey([safe_name(self.pipeline), *_parts(table)])

    @property
    def slot_key(self) -> dg.AssetKey:
        """Key of the replication slot, which carries the pipeline's checks."""
        return dg.AssetKey([safe_name(self.pipeline), "slot"])

    def partitions(self, table: TableId, rule: Rule = None) -> Definition:
        """How the copies of the table are divided; the keys have to be names of its slices, or ``all`` alone.

        Args:
            rule: The partition rule that the config has for the table, if it has one that fits.
        """
        return partitions_for(rule, output_name(self.sync_key(table)))

    def source_spec(self, table: TableId, schema: TableSchema | None) -> dg.AssetSpec:
        """The table at the source: lineage only, nothing to run."""
        return dg.AssetSpec(
            self.source_key(table),
            description=f"Table {table} at the source",
            group_name=safe_name(self.pipeline),
            kinds={"postgres"},
            metadata=_definition_metadata(table, schema),
        )

    def sync_spec(self, table: TableId, schema: TableSchema | None, rule: Rule = None) -> dg.AssetSpec:
        """Copies of the table, whole or in partitions; each tells the columns that it had, so this does not."""
        return dg.AssetSpec(
            self.sync_key(table),
            deps=[self.source_key(table)],
            description=f"Copy of {table} from the source; materialize it to copy the table afresh while it changes",
            group_name=safe_name(self.pipeline),
            kinds={"postgres", self.destination_kind},
            metadata=_definition_metadata(table, None),
            partitions_def=self.partitions(table, rule),
            skippable=True,
        )

    def live_spec(self, table: TableId, schema: TableSchema | None) -> dg.AssetSpec:
        """The table at the destination, following the source."""
        return dg.AssetSpec(
            self.live_key(table),
            deps=[self.sync_key(table)],
            description=f"Table {table} at the destination, following the source{_landing_words(schema)}",
            group_name=safe_name(self.pipeline),
            kinds={self.destination_kind},
            metadata={**_definition_metadata(table, schema), **self._place(table), **_landing(schema)},
            tags=_landing(schema),
            skippable=True,
        )

    def _place(self, table: TableId) -> Metadata:
        shown = None if self.destination is None else self.destination.shown(table)
        if shown is None:
            return {}
        link = {CONSOLE: dg.MetadataValue.url(shown.url)} if shown.url else {}
        return {"dagster/table_name": shown.name, **link}


def check_keys(translator: ReplicationTranslator, tables: Iterable[TableId]) -> None:
    """Refuse keys that two tables share, or that share the output name which Dagster derives from them.

    Raises:
        ConfigError: Names both tables.
    """
    seen: dict[str, TableId] = {}
    for table in tables:
        for key in (translator.source_key(table), translator.sync_key(table), translator.live_key(table)):
            other = seen.setdefault(output_name(key), table)
            if other != table:
                raise ConfigError(
                    f"tables {other} and {table} get the same asset key {key.to_user_string()}",
                    hint="Give them different keys in the translator",
                )


def rule_of(choices: TableChoices, table: TableId, schema: TableSchema | None) -> Rule:
    """The rule that cuts the table into slices; without a schema, whether it fits is seen by the run."""
    return choices.rule(table) if schema is None else choices.partitions(schema)


def ranges_of(translator: ReplicationTranslator, choices: TableChoices, tables: Tables) -> Mapping[TableId, str]:
    """The tables that are cut into ranges, with the names of their dynamic partitions."""
    cut = ((table, rule) for table, schema in tables.items() if (rule := rule_of(choices, table, schema)) is not None)
    definitions = {table: translator.partitions(table, rule) for table, rule in cut}
    return {
        table: found.name
        for table, found in definitions.items()
        if isinstance(found, dg.DynamicPartitionsDefinition) and found.name is not None
    }


def output_name(key: dg.AssetKey) -> str:
    """The op output that stands for the key."""
    return "__".join(safe_name(part) for part in key.path)


def _parts(table: TableId) -> tuple[str, str]:
    # A double underscore joins parts in output names, so within the first part it would be ambiguous.
    return _part(table.schema, "__" in table.schema), _part(table.name, False)


def _part(text: str, ambiguous: bool) -> str:
    """A key part that depends on this name only, so that a table's history survives new neighbours."""
    safe = safe_name(text)
    if safe == text and not ambiguous:
        return safe
    return f"{safe}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _definition_metadata(table: TableId, schema: TableSchema | None) -> Metadata:
    columns = {} if schema is None else {"dagster/column_schema": column_schema(schema)}
    return {"dagster/table_name": str(table), **columns}


def _landing_words(schema: TableSchema | None) -> str:
    return "" if schema is None else _LANDING_WORDS[schema.landing]


def _landing(schema: TableSchema | None) -> dict[str, str]:
    return {} if schema is None else {LANDING_TAG: schema.landing.value}
