"""Edits of the emulator's own source files, made once when it is installed.

They are what cannot be done from outside by replacing a function: syntax of a newer Python, and lines in the middle of
long functions. Everything else is in the modules beside this one. Each edit must find its text exactly once, so that
another version of the package cannot be half edited.

Runs with the emulator's Python: ``python edits.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """One place that becomes another."""

    file: str
    old: str
    new: str


# Python 3.12's type parameters, for 3.11.
TYPE_PARAMETERS = (
    Edit("catalog/metadata.py", "import time\n", 'import time\nfrom typing import TypeVar\n\nR = TypeVar("R")\n'),
    Edit("catalog/metadata.py", "def list_[R: Resource](", "def list_("),
    Edit("catalog/metadata.py", "def load[R: Resource](", "def load("),
    Edit("catalog/metadata.py", "def save[R: Resource](", "def save("),
)

# Python 3.12's quotes inside an f-string, for 3.11.
NESTED_QUOTES = (
    Edit(
        "engine/results.py",
        "THEN error('{message.replace(\"'\", \"''\")}')",
        "THEN error('{message}')",
    ),
    Edit(
        "engine/results.py",
        'error in writing field {column}"\n',
        'error in writing field {column}".replace("\'", "\'\'")\n',
    ),
)

# MERGE opens a transaction of its own by trying. In DuckDB 1.5 a BEGIN inside of a transaction ends that one, so the
# transactions of scripts are kept track of.
MERGE_IN_TRANSACTION = (
    Edit("jobs/merge.py", "import duckdb\n", "import weakref\n\nimport duckdb\n"),
    Edit("jobs/merge.py", "\nSOURCE, PAIRS", "\nIN_TRANSACTION = weakref.WeakSet()\nSOURCE, PAIRS"),
    Edit(
        "jobs/merge.py",
        """    try:
        cur.execute("BEGIN")
        owned = True
    except duckdb.TransactionException:
        owned = False
""",
        """    owned = cur not in IN_TRANSACTION
    if owned:
        cur.execute("BEGIN")
""",
    ),
    Edit(
        "jobs/query.py",
        """    parts = ddl.split(tree)
    if dry_run:
""",
        """    if not dry_run and isinstance(tree, exp.Transaction):
        merge.IN_TRANSACTION.add(cur)
    elif not dry_run and isinstance(tree, (exp.Commit, exp.Rollback)):
        merge.IN_TRANSACTION.discard(cur)
    parts = ddl.split(tree)
    if dry_run:
""",
    ),
)

# A MERGE looks for rows of the target without a source, and of the source without a target, only where it has a clause
# for them.
MERGE_CLAUSES = (
    Edit(
        "jobs/merge.py",
        """        execute(
            f"CREATE OR REPLACE TEMP TABLE {INSERTS}""",
        """        by_target and execute(
            f"CREATE OR REPLACE TEMP TABLE {INSERTS}""",
    ),
    Edit(
        "jobs/merge.py",
        """        execute(
            f"CREATE OR REPLACE TEMP TABLE {ORPHANS}""",
        """        by_source and execute(
            f"CREATE OR REPLACE TEMP TABLE {ORPHANS}""",
    ),
)

# An assignment that is printed by itself, `x = NULL`, is printed as `NULL`.
MERGE_ASSIGNMENTS = (
    Edit(
        "jobs/merge.py",
        '", ".join(_sql(e) for e in action.expressions)',
        '", ".join(f"{_sql(e.this)} = {_sql(e.expression)}" for e in action.expressions)',
    ),
)

# A MERGE is printed and parsed again, and then the function's name stands behind its schema.
JSON_MODES = (
    Edit(
        "sql/rules/json.py",
        'node.name.lower() == "bq.main.parse_json"',
        'node.name.lower() in ("bq.main.parse_json", "parse_json")',
    ),
)

# Decimals are loaded with the digits that the schema gives them.
LOADED_DIGITS = (
    Edit(
        "engine/types.py",
        """        name = TO_DUCKDB[kind]
    else:
        raise BigQueryError("invalid", f"Unsupported field type: {field.type}")
""",
        """        name = TO_DUCKDB[kind]
        if name.startswith("DECIMAL") and field.precision:
            name = f"DECIMAL({min(int(field.precision), 38)},{field.scale or 0})"
    else:
        raise BigQueryError("invalid", f"Unsupported field type: {field.type}")
""",
    ),
)

# A connection that is not a session's has no temporary tables yet.
TEMPORARY_TABLES = (
    Edit(
        "jobs/query.py",
        """    temporary = cur.sql("SELECT table_name FROM duckdb_tables() WHERE temporary")
""",
        """    temporary = cur.sql(
        "SELECT table_name FROM duckdb_tables() WHERE temporary"
        if session
        else "SELECT '' LIMIT 0"
    )
""",
    ),
)

# BYTES are text in base64 in JSON and CSV, and bytes in Parquet and Avro.
TYPED_BYTES = (
    Edit(
        "jobs/load.py",
        "        source = _decoded(column, field)\n",
        "        source = column if typed else _decoded(column, field)\n",
    ),
)

# BigQuery takes appends of up to 20 MB.
LARGE_APPENDS = (
    Edit(
        "grpc/server.py",
        "grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=16))",
        "grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=16), "
        'options=[("grpc.max_receive_message_length", 20 * 1024 * 1024)])',
    ),
)

EDITS = (
    *TYPE_PARAMETERS,
    *NESTED_QUOTES,
    *MERGE_IN_TRANSACTION,
    *MERGE_CLAUSES,
    *MERGE_ASSIGNMENTS,
    *JSON_MODES,
    *LOADED_DIGITS,
    *TEMPORARY_TABLES,
    *TYPED_BYTES,
    *LARGE_APPENDS,
)


def main() -> None:
    """Make all edits, or none when one does not fit."""
    spec = find_spec("local_bigquery")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    texts: dict[Path, str] = {}
    for edit in EDITS:
        path = package / edit.file
        text = texts.get(path) or path.read_text()
        assert text.count(edit.old) == 1, f"{edit.file} is not as expected: {edit.old!r}"
        texts[path] = text.replace(edit.old, edit.new)
    for path, text in texts.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
