"""Refuses what BigQuery refuses and the emulator lets pass, so that a test that passes here means something there.

Sources: BigQuery's documentation of transactions, quotas, column names, clustered tables and ALTER TABLE.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import duckdb
from fastapi import FastAPI
from local_bigquery import errors
from local_bigquery.catalog import metadata, names, tables
from local_bigquery.errors import BigQueryError
from local_bigquery.jobs import load, query, runner
from local_bigquery.models import JobConfiguration, Table
from local_bigquery.sql.dialect import BigQueryDialect
from local_bigquery.sql.translate import Context
from sqlglot import exp

Reference = tuple[str, ...]

MOST_TABLES_PER_TRANSACTION = 100
MOST_QUERY_BYTES = 1 << 20
MOST_REQUEST_BYTES = 10 << 20
MOST_PARAMETERS = 10_000
MOST_CLUSTERING_FIELDS = 4
QUEUE_SECONDS = 60.0
CLUSTERING_TYPES = frozenset(
    {"STRING", "INTEGER", "NUMERIC", "BIGNUMERIC", "BOOLEAN", "DATE", "DATETIME", "TIMESTAMP", "GEOGRAPHY", "RANGE"}
)
RESERVED_COLUMN = re.compile(
    r"_TABLE_|_FILE_|_PARTITION|_ROW_TIMESTAMP|__ROOT__|_COLIDENTIFIER"
    r"|_CHANGE_SEQUENCE_NUMBER|_CHANGE_TYPE|_CHANGE_TIMESTAMP",
    re.IGNORECASE,
)
# What a column's type may become in place; parameters may only grow, which DuckDB does not say.
WIDENING = {
    "INTEGER": {"INTEGER", "NUMERIC", "BIGNUMERIC", "FLOAT"},
    "NUMERIC": {"NUMERIC", "BIGNUMERIC", "FLOAT"},
    "BIGNUMERIC": {"BIGNUMERIC", "FLOAT"},
}
ALTERED_TYPES = {
    exp.DataType.Type.BIGINT: "INTEGER",
    exp.DataType.Type.DECIMAL: "NUMERIC",
    exp.DataType.Type.BIGDECIMAL: "BIGNUMERIC",
    exp.DataType.Type.DOUBLE: "FLOAT",
    exp.DataType.Type.TEXT: "STRING",
}


def apply(app: FastAPI) -> None:
    """Put the checks in front of what they check."""
    # Several RENAME COLUMN in one statement; that actions are not mixed is checked below.
    BigQueryDialect.Parser.ALTER_TABLE_MIXED_ACTIONS = True
    query._run = _run
    query.execute = _execute
    query.from_duckdb = errors.from_duckdb = _from_duckdb
    runner.submit = _submit
    runner.HANDLERS["load"] = _load
    names._illegal = _illegal
    tables.record = _record
    app.add_middleware(LimitRequests)


def _invalid(message: str) -> BigQueryError:
    return BigQueryError("invalidQuery", message)


# Transactions.


@dataclass
class Transaction:
    """One that has begun, and the tables it has changed; of ``mutated`` ones it has touched existing rows."""

    began: int
    changed: set[Reference] = field(default_factory=set)
    mutated: set[Reference] = field(default_factory=set)


class Transactions:
    """Two transactions that mutate one table cannot run at the same time: the second one to come is cancelled.

    A statement outside of a transaction waits instead.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open: weakref.WeakKeyDictionary[Any, Transaction] = weakref.WeakKeyDictionary()
        self._clock = 0
        self._mutated_at: dict[Reference, int] = {}

    def begin(self, cursor: Any) -> None:
        with self._condition:
            if cursor in self._open:
                raise _invalid("Transaction control statement is not allowed: a transaction is in progress")
            self._open[cursor] = Transaction(self._clock)

    def within(self, cursor: Any) -> bool:
        return cursor in self._open

    def end(self, cursor: Any, *, committed: bool) -> None:
        with self._condition:
            transaction = self._open.pop(cursor, None)
            if transaction and committed:
                self._note(transaction.mutated)
            self._condition.notify_all()

    def change(self, cursor: Any, table: Reference, *, mutates: bool) -> None:
        """Before a statement of DML."""
        with self._condition:
            transaction = self._open.get(cursor)
            if transaction is None:
                if mutates and not self._condition.wait_for(lambda: not self._holders(table), QUEUE_SECONDS):
                    raise _invalid(f"Could not serialize access to table {_label(table)} due to concurrent update")
                return
            if mutates and self._conflicts(cursor, transaction, table):
                raise _invalid(f"Transaction is aborted due to concurrent update against table {_label(table)}.")
            transaction.changed.add(table)
            if mutates:
                transaction.mutated.add(table)
            if len(transaction.changed) > MOST_TABLES_PER_TRANSACTION:
                raise _invalid(f"A transaction can modify at most {MOST_TABLES_PER_TRANSACTION} tables")

    def changed(self, cursor: Any, table: Reference) -> None:
        """After a statement that has mutated a table."""
        with self._condition:
            if cursor not in self._open:
                self._note({table})

    def _note(self, mutated: set[Reference]) -> None:
        self._clock += 1
        self._mutated_at.update(dict.fromkeys(mutated, self._clock))

    def _holders(self, table: Reference, but: Any = None) -> bool:
        return any(other is not but and table in held.mutated for other, held in self._open.items())

    def _conflicts(self, cursor: Any, transaction: Transaction, table: Reference) -> bool:
        return self._holders(table, cursor) or self._mutated_at.get(table, 0) > transaction.began


transactions = Transactions()
_original_run = query._run
_original_execute = query.execute
_original_from_duckdb = errors.from_duckdb


def _label(table: Reference) -> str:
    return names.label(*table)


def _from_duckdb(error: Exception, context: Context | None = None, tree: exp.Expression | None = None) -> BigQueryError:
    """DuckDB's own conflicts, over rows and over tables that were altered meanwhile."""
    if isinstance(error, duckdb.TransactionException):
        return _invalid(f"Could not serialize access to table due to concurrent update: {error}")
    return _original_from_duckdb(error, context, tree)


def _execute(cur: Any, project_id: str, *args: Any, session: Any = None, **kwargs: Any) -> Any:
    """A script's transaction ends with it."""
    try:
        return _original_execute(cur, project_id, *args, session=session, **kwargs)
    finally:
        if session is None:
            transactions.end(cur, committed=False)


def _run(
    cur: Any, tree: exp.Expression, context: Context, destination: Any, config: Any, dry_run: bool, isolated: bool
) -> Any:
    if isinstance(tree, exp.Alter):
        _check_alteration(tree, context)
    if dry_run:
        return _original_run(cur, tree, context, destination, config, dry_run, isolated)
    if isinstance(tree, exp.Transaction):
        transactions.begin(cur)
    elif isinstance(tree, exp.Commit | exp.Rollback) and not transactions.within(cur):
        raise _invalid("Transaction control statement is not allowed: there is no transaction")
    elif isinstance(tree, (*query.DDL, exp.Command)) and transactions.within(cur):
        _check_temporary(tree, context)
    table = _changed_table(tree, context)
    mutates = not isinstance(tree, exp.Insert)
    if table:
        transactions.change(cur, table, mutates=mutates)
    replaced = _replaced_table(tree, context)
    before = replaced and layout_of(replaced)
    result = _original_run(cur, tree, context, destination, config, dry_run, isolated)
    if replaced and before is not None and layout_of(replaced) != before:
        raise _invalid("Cannot replace a table with a different partitioning spec. Instead, DROP the table")
    if table and mutates:
        transactions.changed(cur, table)
    if isinstance(tree, exp.Commit | exp.Rollback):
        transactions.end(cur, committed=isinstance(tree, exp.Commit))
    return result


def _replaced_table(tree: exp.Expression, context: Context) -> Reference | None:
    if not isinstance(tree, exp.Create) or tree.args.get("kind") != "TABLE" or not tree.args.get("replace"):
        return None
    table = tree.find(exp.Table)
    if table is None or _is_temporary(table, context) or context.temporary is None:
        return None
    return names.reference(table, context.project_id, context.dataset_id or "")


def layout_of(table: Reference) -> tuple[Any, ...] | None:
    """How a table is partitioned and clustered; None when there is none."""
    stored = metadata.load(Table, *table)
    if stored is None:
        return None
    parts = (stored.timePartitioning, stored.rangePartitioning)
    fields = (stored.clustering and stored.clustering.fields) or []
    return (*(part and part.field for part in parts), *fields)


def _changed_table(tree: exp.Expression, context: Context) -> Reference | None:
    if not isinstance(tree, exp.Insert | exp.Update | exp.Delete | exp.Merge | exp.TruncateTable):
        return None
    table = tree.find(exp.Table)
    if table is None or _is_temporary(table, context):
        return None
    return names.reference(table, context.project_id, context.dataset_id or "")


def _is_temporary(table: exp.Table, context: Context) -> bool:
    return table.db.casefold() == "_session" or (not table.db and table.name.casefold() in context.temporary)


def _check_temporary(tree: exp.Expression, context: Context) -> None:
    target = tree.find(exp.Table)
    dropped = isinstance(tree, exp.Drop) and target is not None and _is_temporary(target, context)
    if not dropped and tree.find(exp.TemporaryProperty) is None:
        raise _invalid("DDL statements on permanent entities are not supported inside of a transaction")


# Definitions.

_original_illegal = names._illegal
_original_record = tables.record


def _illegal(name: str) -> bool:
    return _original_illegal(name) or RESERVED_COLUMN.match(name) is not None


def _record(project_id: str, dataset_id: str, table_id: str, resource: Table) -> None:
    """A table that BigQuery would not have made is taken away again."""
    reference = (project_id, dataset_id, table_id)
    if dataset_id != tables.RESULTS and not resource.view and resource.type not in tables.STORED_TYPES:
        try:
            _check_columns(reference, resource)
        except BigQueryError:
            if metadata.load(Table, *reference) is None:
                query.database.execute(f"DROP TABLE IF EXISTS {tables.name(*reference)}")
            raise
    _original_record(*reference, resource)


def _check_columns(reference: tuple[str, str, str], resource: Table) -> None:
    if not tables.database.objects(*tables.physical(*reference)):
        return
    columns = {column.name.casefold(): column for column in tables.columns(*reference)}
    for column in columns.values():
        names.column(column.name)
    fields = (resource.clustering and resource.clustering.fields) or []
    if len(fields) > MOST_CLUSTERING_FIELDS:
        raise _invalid(f"Clustering supports up to {MOST_CLUSTERING_FIELDS} fields, and {len(fields)} are given")
    for name in fields:
        column = columns.get(name.casefold())
        if column is None or column.mode == "REPEATED" or column.type not in CLUSTERING_TYPES:
            raise _invalid(f"Clustering by column {name} of type {column and column.type} is not possible")


def _check_alteration(tree: exp.Alter, context: Context) -> None:
    actions = tree.args.get("actions") or []
    if len({type(action) for action in actions}) > 1:
        raise _invalid("Syntax error: an ALTER TABLE has actions of one kind")
    target = tree.find(exp.Table)
    if target is None or tree.args.get("kind") != "TABLE":
        return
    reference = names.reference(target, context.project_id, context.dataset_id or "")
    stored = metadata.load(Table, *reference)
    laid_out = _layout_columns(stored) if stored else set()
    for action in actions:
        renames = isinstance(action, exp.RenameColumn)
        drops = isinstance(action, exp.Drop) and action.args.get("kind") == "COLUMN"
        column = action.args["tables"][0] if drops else action.this
        name = column.name if isinstance(column, exp.Expression) else ""
        if (renames or drops) and name.casefold() in laid_out:
            raise _invalid(f"Column {name} cannot be renamed or dropped: the table is clustered or partitioned by it")
        if renames:
            names.column(action.args["to"].name)
        if isinstance(action, exp.AlterColumn) and action.args.get("dtype"):
            _check_widening(reference, name, action.args["dtype"])


def _layout_columns(table: Table) -> set[str]:
    fields = list((table.clustering and table.clustering.fields) or [])
    fields += [part.field for part in (table.timePartitioning, table.rangePartitioning) if part and part.field]
    return {name.casefold() for name in fields}


def _check_widening(reference: tuple[str, str, str], name: str, wanted: exp.DataType) -> None:
    for column in tables.columns(*reference):
        if column.name.casefold() == name.casefold():
            target = ALTERED_TYPES.get(wanted.this, str(wanted))
            if target not in WIDENING.get(column.type, {column.type}):
                raise _invalid(
                    f"ALTER TABLE ALTER COLUMN SET DATA TYPE requires that the existing column type ({column.type}) "
                    f"is assignable to the new type ({target})"
                )


# Jobs and requests.

_original_submit = runner.submit
_original_load = load.run


def _submit(project_id: str, job_id: str, configuration: JobConfiguration, upload: str | None = None) -> Any:
    asked = configuration.query
    if asked and len((asked.query or "").encode()) > MOST_QUERY_BYTES:
        raise BigQueryError(
            "invalid", "The query is too large. The maximum standard SQL query length is 1024.00K characters"
        )
    if asked and len(asked.queryParameters or []) > MOST_PARAMETERS:
        raise BigQueryError("invalid", f"Too many query parameters: the limit is {MOST_PARAMETERS}")
    return _original_submit(project_id, job_id, configuration, upload)


def _load(cur: Any, config: Any, upload: str | None) -> Any:
    """Parquet cannot fill columns of type JSON."""
    if config.sourceFormat == "PARQUET":
        fields = (config.schema_ and config.schema_.fields) or []
        reference = tables.reference(config.destinationTable)
        if not fields and tables.exists(*reference):
            fields = tables.columns(*reference)
        if any(column.type == "JSON" for column in fields):
            raise BigQueryError("invalid", "Unsupported field type: JSON")
    return _original_load(cur, config, upload)


class LimitRequests:
    """Requests other than uploads have 10 MB."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        length = int(dict(scope.get("headers", [])).get(b"content-length", 0))
        if scope["type"] != "http" or length <= MOST_REQUEST_BYTES or scope["path"].startswith("/upload/"):
            await self.app(scope, receive, send)
            return
        while (await receive()).get("more_body"):
            pass
        message = f"Request payload size exceeds the limit: {MOST_REQUEST_BYTES} bytes."
        error = {"code": 413, "message": message, "errors": [{"message": message, "reason": "uploadTooLarge"}]}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
