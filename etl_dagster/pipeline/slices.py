"""The slices of one table: as the rule and the store have them, and as people name them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from etl_dagster.errors import ConfigError
from etl_dagster.model import Column, KeyRanges, RangePlan, Slice, TableChoices, TableSchema, TimeWindows
from etl_dagster.model.slices import MAX_SLICES
from etl_dagster.postgres import PostgresSource
from etl_dagster.store.base import Store, TableRecord, TableState


class TableSlices:
    """The slices of one table; none where no rule fits it, and of a range rule while nothing is planned."""

    def __init__(self, choices: TableChoices, store: Store, schema: TableSchema) -> None:
        self._choices = choices
        self._store = store
        self._schema = schema
        self._rule = choices.partitions(schema)

    def now(self) -> list[Slice]:
        """As they are at this moment, in order."""
        if self._rule is None:
            return []
        if isinstance(self._rule, TimeWindows):
            return self._rule.slices(self._column, datetime.now(UTC))
        plan = self._known_plan()
        return [] if plan is None else plan.slices(self._column)

    def plan(self, source: PostgresSource) -> None:
        """Plan ranges where there are none; those that are known stay, but for the last one, which may have grown."""
        if not isinstance(self._rule, KeyRanges):
            return
        known = self._known_plan()
        bounds = () if known is None else known.bounds
        if len(bounds) + 1 < MAX_SLICES:
            found = source.plan_ranges(self._schema, self._column, self._rule.rows, bounds[-1] if bounds else None)
            bounds = (*bounds, *found)[: MAX_SLICES - 1]
        column = self._column
        plan = RangePlan(relation=self._schema.oid, attnum=column.attnum, type_oid=column.type.oid, bounds=bounds)
        if plan != known:
            self._store.save_range_plan(self._schema.id, plan)

    def chosen(self, record: TableRecord, names: Sequence[str]) -> tuple[Slice, ...]:
        """The slices of these names; none where they are the whole table.

        Raises:
            ConfigError: There is no such slice, or the table is out, so that only all of it can be copied.
        """
        table = record.table
        known = {each.name: each for each in self.now()}
        if not known:
            raise ConfigError(f"{table} has no slices", hint=self._why_none())
        if unknown := [name for name in names if name not in known]:
            hint = f"It has {len(known)} slices, which are listed by: etl-dagster partitions"
            raise ConfigError(f"{table} has no slice{_named(unknown[:1])}", hint=hint)
        wanted = dict.fromkeys(names)
        if len(wanted) == len(known):
            return ()
        if record.state in (TableState.QUARANTINED, TableState.REMOVED):
            hint = f"Mend the cause, then resume {table}, or copy all of its slices"
            raise ConfigError(f"Slices of {table} cannot be copied, since it is {record.state}", hint=hint)
        return tuple(known[name] for name in wanted)

    @property
    def _column(self) -> Column:
        assert self._rule is not None
        name = self._rule.column
        return next(column for column in self._schema.columns if column.name == name)

    def _known_plan(self) -> RangePlan | None:
        plan = self._store.range_plan(self._schema.id)
        return plan if plan is not None and plan.fits(self._schema, self._column) else None

    def _why_none(self) -> str:
        path = f"tables.{self._schema.id}.partitions"
        if self._choices.rule(self._schema.id) is None:
            return f"Give it a rule in the config: {path}"
        if self._rule is None:
            return f"Its {path} does not fit; see: etl-dagster check"
        return "Its ranges are not planned yet"


def _named(names: Sequence[str]) -> str:
    """Windows by their names; bounds of ranges are values of rows, which no message shows."""
    return f" {', '.join(names)}" if all(name[:1].isdigit() for name in names) else " of that name"
