"""Published tables as the catalogue describes them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from etl_dagster.model import ChunkPlan, ReplicaIdentity, TableId, TableSchema, TypeKind
from etl_dagster.postgres import PostgresSource
from etl_dagster.postgres.partitions import RelationFile
from tests.conftest import Connect
from tests.postgres.conftest import MakeSource, source_config


def key(source: PostgresSource, table: str) -> list[str]:
    return [column.name for column in source.tables()[TableId("public", table)].key]


def test_columns_come_in_attnum_order_without_dropped_and_generated_ones(
    connect: Connect, source: PostgresSource
) -> None:
    connect().execute(
        "create table t(a int primary key, b text, c numeric(9,3) not null, g int generated always as (a + 1) stored);"
        "alter table t drop column b; alter table t add d date"
    )
    source.prepare_publication()

    table = source.tables()[TableId("public", "t")]

    assert [(c.attnum, c.name, c.type.name, c.nullable) for c in table.columns] == [
        (1, "a", "integer", False),
        (3, "c", "numeric(9,3)", False),
        (5, "d", "date", True),
    ]


def test_domains_enums_and_arrays_are_resolved(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create type mood as enum ('sad', 'ok'); create domain short as varchar(7); create domain shorter as short;"
        "create domain list as numeric(5,1)[]; create type pair as (a int, b int);"
        "create table t(id int primary key, m mood, ms mood[], s shorter, ss shorter[], l list, v varchar(3)[],"
        " p pair, r int4range, i2 int2vector)"
    )
    source.prepare_publication()

    types = {c.name: c.type for c in source.tables()[TableId("public", "t")].columns}

    assert types["m"].kind is TypeKind.ENUM
    assert (types["ms"].kind, types["ms"].element) == (TypeKind.ARRAY, types["m"].model_copy())
    assert (types["s"].oid, types["s"].typmod, types["s"].name) == (1043, 7 + 4, "public.shorter")
    assert types["s"].declared_oid not in (0, 1043)
    assert types["ss"].element is not None
    assert (types["ss"].element.oid, types["ss"].element.typmod) == (1043, 7 + 4)
    assert types["l"].element is not None
    assert (types["l"].kind, types["l"].element.oid, types["l"].element.typmod) == (TypeKind.ARRAY, 1700, 327685)
    assert types["v"].element is not None
    assert (types["v"].element.oid, types["v"].element.typmod) == (1043, 3 + 4)
    assert types["p"].kind is TypeKind.COMPOSITE
    assert types["r"].kind is TypeKind.RANGE
    assert types["i2"].kind is TypeKind.BASE


def test_the_key_is_what_the_stream_sends(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table by_pk(a int, b int, c int, primary key (c, a));"
        "create table by_index(a int primary key, b int not null, c int not null);"
        "create unique index other on by_index (c, b); alter table by_index replica identity using index other;"
        "create table fully(a int primary key, b int); alter table fully replica identity full;"
        "create table full_without(a int, b int); alter table full_without replica identity full;"
        "create table without(a int);"
        "create table deferred(a int primary key deferrable);"
        "create table covering(a int, b int, primary key (a) include (b))"
    )
    source.prepare_publication()

    assert key(source, "by_pk") == ["c", "a"]
    assert key(source, "by_index") == ["c", "b"]
    assert key(source, "fully") == ["a"]
    assert key(source, "full_without") == []
    assert key(source, "without") == []
    assert key(source, "deferred") == []
    assert key(source, "covering") == ["a"]
    assert source.tables()[TableId("public", "fully")].replica_identity is ReplicaIdentity.FULL


@pytest.mark.since(15)
def test_column_list_and_row_filter_are_honoured(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(id int primary key, a int, secret text); create table u(id int primary key, a int);"
        "create publication p for table t (id, a) where (id > 10), u (a)"
    )

    tables = source.tables()

    assert [c.name for c in tables[TableId("public", "t")].columns] == ["id", "a"]
    assert tables[TableId("public", "t")].row_filter == "(id > 10)"
    assert tables[TableId("public", "u")].key == ()


def test_a_partitioned_table_is_one_table_through_its_root(connect: Connect, make_source: MakeSource) -> None:
    connect().execute(
        "create table r(id int primary key, v text) partition by range (id);"
        "create table r1 partition of r for values from (0) to (10);"
        "create table r2 partition of r for values from (10) to (20);"
        "create publication leaves for table r"
    )
    source = make_source()
    source.prepare_publication()
    leaves = make_source(source_config(source.config.connection.dsn.get_secret_value(), name="leaves"))  # type: ignore[union-attr]

    assert list(source.tables()) == [TableId("public", "r")]
    assert list(leaves.tables()) == [TableId("public", "r1"), TableId("public", "r2")]


def test_odd_names_come_through(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        'create schema "Odd ""s.x"; create table "Odd ""s.x"."Tab le" ("Ключ %s" int primary key, "a""b" text)'
    )
    source.prepare_publication()

    table = source.tables()[TableId('Odd "s.x', "Tab le")]

    assert [c.name for c in table.columns] == ["Ключ %s", 'a"b']
    assert table.key[0].name == "Ключ %s"


def test_thousands_of_tables_take_no_query_each(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "do $$ begin for i in 1..2500 loop execute format('create table t%s(id int primary key, a text)', i);"
        " end loop; end $$"
    )
    source.prepare_publication()
    started = time.monotonic()

    assert len(source.tables()) == 2500
    assert time.monotonic() - started < 2


ODD_VALUES = [
    ("text", "''"),
    ("text", "'NULL'"),
    ("text", r"""e'a"b\\c {x}, ''q'' \n 日本'"""),
    ("char(5)", "'ab'"),
    ("numeric(5,2)", "1.5"),
    ("float8", "'NaN'"),
    ("bool", "true"),
    ("timestamptz", "'2020-01-01 00:00:00+02'"),
    ("jsonb", """'{"a": [1, "x"]}'"""),
    ("bytea", r"'\x00ff'"),
    ("box", "'(1,1),(0,0)'"),  # the one type whose arrays use another delimiter
    ("box[]", "'{(1,1),(0,0);(2,2),(1,1)}'"),
    ("int[]", "'{1,NULL,3}'"),
    ("int[]", "'[0:1]={1,2}'"),
    ("int[]", "'{{1,2},{3,4}}'"),
    ("int[]", "'{}'"),
    ("text[]", """array['a"', '', null, 'NULL', '{}', e'\\\\']"""),
    ("pair", """row(1, 'x "y"')"""),
    ("pair[]", "array[row(1, 'x,y')::pair]"),
    ("price", "1.5"),
    ("int4range", "'[1,5)'"),
    ("int2vector", "'1 2'"),
]


def test_the_value_of_rows_older_than_a_column_is_told_exactly(
    connect: Connect, make_source: MakeSource, database: str
) -> None:
    admin = connect()
    admin.execute(
        "create type pair as (a int, b text); create domain price as numeric(5,2); create table t(id int primary key);"
        "insert into t values (1)"
    )
    for place, (kind, value) in enumerate(ODD_VALUES):
        admin.execute(f"alter table t add c{place} {kind} default {value}".encode())
    admin.execute("alter table t add plain int; create publication p for table t; set timezone = utc")
    role = f"reader_{uuid4().hex[:8]}"
    admin.execute(f"create role {role} login".encode())
    try:
        source = make_source(source_config(database.replace("postgres@", f"{role}@"), name="p"))
        columns = source.tables()[TableId("public", "t")].columns
        source.close()
    finally:
        admin.execute(f"drop role {role}".encode())

    texts = ", ".join(f"concat(c{place})" for place in range(len(ODD_VALUES)))
    assert [c.missing for c in columns[1:-1]] == list(admin.execute(f"select {texts} from t".encode()).fetchall()[0])
    assert columns[0].missing is columns[-1].missing is None


LEAVES = """
create table r(id int) partition by range (id); create table r1 partition of r for values from (0) to (10);
create table r2 partition of r for values from (10) to (30) partition by range (id);
create table r21 partition of r2 for values from (10) to (20);
"""


def test_the_missing_value_of_a_partitioned_table_is_that_of_all_leaves_older_than_the_column(
    connect: Connect, source: PostgresSource
) -> None:
    admin = connect()
    admin.execute(LEAVES + "alter table r add a text default '{\"x\"}'")
    source.prepare_publication()
    agreed = source.tables()[TableId("public", "r")]
    admin.execute("create table r3 partition of r for values from (30) to (40)")
    with_younger = source.tables()[TableId("public", "r")]
    admin.execute("vacuum full r21")
    disagreed = source.tables()[TableId("public", "r")]

    assert [(c.name, c.missing) for c in agreed.columns] == [("id", None), ("a", '{"x"}')]
    assert with_younger.columns == agreed.columns
    assert [(c.name, c.missing) for c in disagreed.columns] == [("id", None), ("a", None)]


def test_dropped_columns_count_among_those_ever_given_out(connect: Connect, source: PostgresSource) -> None:
    connect().execute("create table t(id int primary key, a int, b int); alter table t drop column b")
    source.prepare_publication()

    assert source.tables()[TableId("public", "t")].natts == 3


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("add x int", None),
        ("add x int default null", None),
        ("add x price", None),
        ("add x int not null default 5", "5"),
        ("add x text default 'it''s'", "it's"),
        ("add x int default 5, alter x set default 6", "5"),
        ("add x int default 5, alter x drop default", "5"),
        ("rename v to w", None),
        ("drop v", None),
    ],
)
def test_a_table_that_can_be_followed_is_described_as_it_is_now(
    connect: Connect, source: PostgresSource, change: str, missing: str | None
) -> None:
    admin = connect()
    admin.execute(
        "create domain price as numeric(9,2) check (value > 0); create table t(id int primary key, v int);"
        "insert into t values (1)"
    )
    source.prepare_publication()
    known = source.tables()[TableId("public", "t")]
    for part in change.split(", "):
        admin.execute(f"alter table t {part}".encode())

    now = source.describe(known)

    assert now is not None
    assert now == source.tables()[TableId("public", "t")].model_copy(update={"toast": known.toast})
    assert now.columns[-1].missing == missing
    assert source.describe(now) == now


@pytest.mark.parametrize(
    "change",
    [
        "alter table t add x uuid default gen_random_uuid()",
        "alter table t add x serial",
        "alter table t add x int generated always as identity",
        "alter table t add x fours",
        "alter table t add x deep_fours",
        "alter table t add x int default 5; vacuum full t",
        "alter table t add x int; update t set x = 1; alter table t alter x set not null",
        "drop table t",
        "drop table t; create table t(id int primary key, v int)",
    ],
)
def test_a_table_whose_older_rows_cannot_be_told_is_not_described(
    connect: Connect, source: PostgresSource, change: str
) -> None:
    admin = connect()
    admin.execute(
        "create domain fours as int not null default 4; create domain deep_fours as fours;"
        "create table t(id int primary key, v int not null default 7); insert into t values (1);"
        "create table other(id int primary key); create publication p for table t, other"
    )
    known = source.tables()[TableId("public", "t")]
    assert source.describe(known) == known
    for part in change.split("; "):
        admin.execute(part.encode())

    assert source.describe(known) is None


def test_a_new_column_of_a_partitioned_table_is_followed_when_its_leaves_agree(
    connect: Connect, source: PostgresSource
) -> None:
    admin = connect()
    admin.execute(LEAVES)
    source.prepare_publication()
    known = source.tables()[TableId("public", "r")]
    admin.execute("alter table r add a int default 5")
    followed = source.describe(known)
    admin.execute("create table r3 partition of r for values from (30) to (40)")
    with_younger = source.describe(known)
    admin.execute("alter table r alter a drop default")
    admin.execute("vacuum full r21")

    assert followed is not None
    assert followed.columns[1].missing == "5"
    assert with_younger == followed
    assert source.describe(known) is None


@pytest.mark.parametrize("schema", ["a", "b"])
def test_of_tables_with_one_name_the_one_meant_is_described(
    connect: Connect, source: PostgresSource, schema: str
) -> None:
    admin = connect()
    admin.execute(
        "create schema a; create schema b; create table a.t(id int primary key, x int);"
        "create table b.t(id int primary key, y text)"
    )
    source.prepare_publication()
    tables = source.tables()
    admin.execute("alter table a.t add z int; alter table b.t add z int")

    now = source.describe(tables[TableId(schema, "t")])

    assert now is not None
    assert [c.name for c in now.columns] == ["id", "x" if schema == "a" else "y", "z"]


def files_of(source: PostgresSource, table: str) -> Sequence[RelationFile]:
    return source.files([source.tables()[TableId("public", table)]])[TableId("public", table)]


def test_the_file_of_a_table_changes_with_a_rewrite(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key, v text)")
    source.prepare_publication()
    known = source.tables()[TableId("public", "t")]
    (before,) = files_of(source, "t")
    admin.execute("alter table t add w uuid default gen_random_uuid()")
    (after,) = files_of(source, "t")
    admin.execute("drop table t")

    assert before.relation == after.relation == known.oid
    assert before.filenode != after.filenode
    assert source.files([known]) == {}


PARTITIONED = "create table r(id int, v text) partition by range (id);"
MANY_FEATURES = """
create table f(id int primary key); create table r(id bigint generated by default as identity,
 f int references f default 1, v text default 'x' check (v <> 'y'), primary key (id)) partition by range (id);
create index on r(v);
"""


@pytest.mark.parametrize(
    ("statements", "born"),
    [
        (PARTITIONED + "create table x partition of r for values from (0) to (10)", True),
        (PARTITIONED + "create table x partition of r default", True),
        (PARTITIONED + "begin; create table x partition of r default; insert into r values (1); commit", True),
        (PARTITIONED + "create table x partition of r default; alter table r add w int default 5", True),
        (PARTITIONED + "create table x partition of r default; alter table x rename to y; truncate r", True),
        (
            MANY_FEATURES + "create table x partition of r (v default 'z' not null) default",
            True,
        ),
        ("create table r(id serial primary key) partition by range (id); create table x partition of r default", True),
        (PARTITIONED + "create table x(id int, v text); alter table r attach partition x default", False),
        (
            PARTITIONED + "begin; create table x(id int, v text); insert into x values (1);"
            "alter table r attach partition x default; commit",
            False,
        ),
        (
            PARTITIONED + "begin; create table x as select 1 as id, ''::text as v;"
            "alter table r attach partition x default; commit",
            False,
        ),
        (
            "begin;" + PARTITIONED + "savepoint s; create table x(like r including all); release s;"
            "alter table r attach partition x default; commit",
            False,
        ),
        (
            PARTITIONED + "create table x partition of r default; alter table r detach partition x;"
            "alter table r attach partition x default",
            False,
        ),
        (
            PARTITIONED + "begin; create table x partition of r default; alter table r detach partition x;"
            "insert into x values (1); alter table r attach partition x default; commit",
            False,
        ),
        (
            PARTITIONED + "begin; create table x(id int, v text); alter table r attach partition x default; commit;"
            "begin; alter table r detach partition x; rollback",
            False,
        ),
        (
            PARTITIONED + "create table m partition of r default partition by range (id);"
            "create table x partition of m default",
            True,
        ),
        (
            PARTITIONED + "create table m(id int, v text) partition by range (id);"
            "create table x partition of m default; alter table r attach partition m default",
            False,
        ),
        (
            PARTITIONED + "create table m partition of r default partition by range (id);"
            "create table x(id int, v text); alter table m attach partition x default",
            False,
        ),
    ],
)
def test_a_partition_born_as_one_is_told_from_one_that_was_attached(
    connect: Connect, source: PostgresSource, statements: str, born: bool
) -> None:
    admin = connect()
    for statement in statements.split(";"):
        admin.execute(statement.encode())
    source.prepare_publication()

    (file,) = files_of(source, "r")

    assert file.born_partition is born
    admin.execute("vacuum (freeze) pg_attribute, pg_inherits")
    assert files_of(source, "r")[0].born_partition is born


def test_a_partitioned_table_without_partitions_has_no_files(connect: Connect, source: PostgresSource) -> None:
    connect().execute(PARTITIONED)
    source.prepare_publication()

    assert files_of(source, "r") == []


def test_the_files_of_thousands_of_tables_take_one_query(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "do $$ begin for i in 1..100 loop execute format('create table r%s(id int) partition by range (id)', i);"
        " for j in 1..10 loop execute format('create table r%s_%s partition of r%s for values from (%s) to (%s)',"
        " i, j, i, j, j + 1); end loop; execute format('create table t%s(id int primary key)', i);"
        " end loop; end $$"
    )
    source.prepare_publication()
    tables = list(source.tables().values())
    started = time.monotonic()

    files = source.files(tables)

    assert time.monotonic() - started < 1
    assert sorted({len(heaps) for heaps in files.values()}) == [1, 10]
    assert len(files) == 200


@pytest.mark.since(18)
@pytest.mark.parametrize(
    ("publication", "columns"),
    [
        ("for table t", ["id"]),
        ("for table t (id)", ["id"]),
        ("for table t (id, s)", ["id", "s"]),
        ("for table t with (publish_generated_columns = stored)", ["id", "s"]),
        ("for table t with (publish_generated_columns = none)", ["id"]),
        ("for all tables with (publish_generated_columns = stored)", ["id", "s"]),
        ("for tables in schema public with (publish_generated_columns = stored)", ["id", "s"]),
    ],
)
def test_generated_columns_are_carried_as_the_publication_says(
    connect: Connect, source: PostgresSource, publication: str, columns: list[str]
) -> None:
    admin = connect()
    admin.execute(
        "create table t(id int primary key, s int generated always as (id * 2) stored,"
        " v int generated always as (id) virtual)"
    )
    admin.execute(f"create publication p {publication}".encode())
    source.create_slot()
    admin.execute("insert into t values (21)")
    table = source.tables()[TableId("public", "t")]
    with source.read_chunk(table, ChunkPlan(table.oid, 0, 0, None, 0)) as reader:
        copied = [row for batch in reader for row in batch.to_pylist()]
    window = source.window({table.oid: table}, source.current_position(), 100)
    streamed = [r for piece in window for events in piece for c in events.changes for r in c.rows.to_pylist()]

    assert [column.name for column in table.columns] == columns
    assert copied == streamed == [dict(zip(columns, (21, 42), strict=False))]
    assert window.drifted == {}


@pytest.mark.since(15)
def test_a_column_list_may_leave_out_part_of_the_replica_identity(connect: Connect, source: PostgresSource) -> None:
    connect().execute(
        "create table t(a int, b int, v text, primary key (a, b)); create table u(a int primary key, v text);"
        "alter table u replica identity full; create publication p for table t (b, v), u (v) with (publish = insert)"
    )

    tables = source.tables()

    assert [c.name for c in tables[TableId("public", "t")].columns] == ["b", "v"]
    assert tables[TableId("public", "t")].key == tables[TableId("public", "u")].key == ()


NESTED = """
create table r(id int primary key, v text) partition by range (id);
create table r1 partition of r for values from (0) to (10);
create table m partition of r for values from (10) to (30) partition by range (id);
create table m1 partition of m for values from (10) to (20);
create table m2 partition of m for values from (20) to (30);
"""


@pytest.mark.parametrize(
    ("publication", "tables"),
    [
        ("for table r with (publish_via_partition_root = true)", {"r": 3}),
        ("for table r", {"r1": 1, "m1": 1, "m2": 1}),
        ("for table m with (publish_via_partition_root = true)", {"m": 2}),
        ("for table m", {"m1": 1, "m2": 1}),
        ("for table m1", {"m1": 1}),
        ("for table m1 with (publish_via_partition_root = true)", {"m1": 1}),
        ("for table r, m with (publish_via_partition_root = true)", {"r": 3}),
        ("for table m, r1 with (publish_via_partition_root = true)", {"m": 2, "r1": 1}),
        ("for table m, r1", {"m1": 1, "m2": 1, "r1": 1}),
        ("for all tables", {"r1": 1, "m1": 1, "m2": 1}),
        ("for all tables with (publish_via_partition_root = true)", {"r": 3}),
    ],
)
def test_copy_and_stream_agree_however_partitions_are_published(
    connect: Connect, source: PostgresSource, publication: str, tables: dict[str, int]
) -> None:
    admin = connect()
    admin.execute(NESTED)
    admin.execute(f"create publication p {publication}".encode())
    source.create_slot()
    admin.execute("insert into r select i, 'v' || i from generate_series(0, 29) i")
    described = source.tables()
    copied = {}
    for table in described.values():
        plans = source.plan_chunks(table, 1 << 20)
        assert len(plans) == len(source.files([table])[table.id]) == tables[table.id.name]
        copied[table.id.name] = sorted(row["id"] for plan in plans for row in chunk_rows(source, table, plan))
    streamed: dict[str, list[int]] = {}
    window = source.window({t.oid: t for t in described.values()}, source.current_position(), 1000)
    for piece in window:
        for events in piece:
            ids = [row["id"] for changes in events.changes for row in changes.rows.to_pylist()]
            streamed.setdefault(events.table.id.name, []).extend(ids)

    assert {t.id.name for t in described.values()} == tables.keys()
    assert {name: sorted(ids) for name, ids in streamed.items()} == copied
    assert window.drifted == {}


def chunk_rows(source: PostgresSource, table: TableSchema, plan: ChunkPlan) -> list[dict[str, Any]]:
    with source.read_chunk(table, plan) as reader:
        return [row for batch in reader for row in batch.to_pylist()]


def memberships(source: PostgresSource) -> dict[str, tuple[int, ...]]:
    return {str(table.id): table.membership for table in source.tables().values()}


@pytest.mark.since(15)
def test_the_membership_names_every_entry_that_makes_a_table_a_member(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        NESTED + "create schema s; create table s.t(id int primary key); create table alone(id int primary key);"
        "create publication p for table r, m1, alone, tables in schema s with (publish_via_partition_root = true)"
    )
    by_table = dict(admin.execute("select prrelid::regclass::text, oid from pg_publication_rel").fetchall())

    found = memberships(source)

    assert (
        {table: entries[1:] for table, entries in found.items()}
        == {
            "public.r": (by_table["r"],),  # the entry of a partition publishes no other one
            "public.alone": (by_table["alone"],),
            "s.t": found["s.t"][1:],
        }
    )
    assert len(found["s.t"]) == 2
    assert len({entries[0] for entries in found.values()}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        "set (publish = 'insert'); set (publish = 'insert, update, delete, truncate')",
        "set (publish_via_partition_root = true); set (publish_via_partition_root = false)",
        "rename to q; rename to p",
    ],
)
def test_a_publication_that_was_altered_shows_also_when_it_was_altered_back(
    connect: Connect, source: PostgresSource, changes: str
) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key); create publication p for table t")
    before = memberships(source)["public.t"]
    for change in changes.split("; "):
        admin.execute(f"alter publication {'q' if change.endswith('to p') else 'p'} {change}".encode())
    after = memberships(source)["public.t"]

    assert before[0] != after[0]
    assert before[1:] == after[1:]


def test_other_tables_that_join_and_leave_a_publication_leave_the_membership_as_it_is(
    connect: Connect, source: PostgresSource
) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key); create table u(id int primary key)")
    admin.execute("create publication p for table t")
    before = memberships(source)["public.t"]

    for change in ("add table u", "drop table u", "set table t, u", "set table t"):
        admin.execute(f"alter publication p {change}".encode())
        assert memberships(source)["public.t"] == before
    admin.execute("vacuum full pg_publication")
    admin.execute("vacuum (freeze) pg_publication")
    assert memberships(source)["public.t"] == before


@pytest.mark.since(15)
def test_a_table_that_left_its_schema_and_came_back_has_another_membership(
    connect: Connect, source: PostgresSource
) -> None:
    admin = connect()
    admin.execute("create schema s; create table t(id int primary key, v text)")
    admin.execute("create publication p for tables in schema public")
    before = memberships(source)["public.t"]
    admin.execute("alter table t add w int; alter table t alter v set storage plain; analyze t; create index on t(v)")
    unmoved = memberships(source)["public.t"]
    admin.execute("alter table t set schema s; alter table s.t set schema public")
    after = memberships(source)["public.t"]

    assert unmoved == before
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.since(15)
def test_filter_and_column_list_of_a_partitioned_table_hold_in_leaves_of_another_shape(
    connect: Connect, source: PostgresSource
) -> None:
    admin = connect()
    admin.execute(
        "create table r(id int, v text, w int, primary key (id)) partition by range (id);"
        "create table m(gone int, w int, id int not null, v text) partition by range (id); alter table m drop gone;"
        "create table m1(v text, w int, id int not null); alter table m attach partition m1 for values from (0) to (10);"
        "alter table r attach partition m for values from (0) to (20);"
        "create publication p for table r (v, id) where (id % 2 = 0 and w is null)"
        " with (publish_via_partition_root = true)"
    )
    source.create_slot()
    admin.execute("insert into r (id, v, w) select i, 'v' || i, nullif(i, 4) - i from generate_series(0, 5) i")
    admin.execute("insert into r (id, v) values (6, 'six'), (7, 'seven')")
    (table,) = source.tables().values()
    copied = [row for plan in source.plan_chunks(table, 1 << 20) for row in chunk_rows(source, table, plan)]
    window = source.window({table.oid: table}, source.current_position(), 100)
    streamed = [r for piece in window for events in piece for c in events.changes for r in c.rows.to_pylist()]

    assert copied == streamed == [{"id": 4, "v": "v4"}, {"id": 6, "v": "six"}]


def test_the_key_is_another_one_after_it_was_made_again_but_not_after_reindex(
    connect: Connect, source: PostgresSource
) -> None:
    admin = connect()
    admin.execute("create table t(id int primary key)")
    source.prepare_publication()

    def key_index() -> int:
        return source.tables()[TableId("public", "t")].key_index

    first = key_index()
    admin.execute("reindex table t")
    admin.execute("reindex table concurrently t")
    admin.execute("alter table t replica identity full")
    after_reindex = key_index()
    admin.execute("alter table t drop constraint t_pkey; alter table t add primary key (id)")

    assert first == after_reindex != 0
    assert key_index() != first


def test_the_types_that_columns_lead_to_are_told_part_by_part(connect: Connect, source: PostgresSource) -> None:
    admin = connect()
    admin.execute(
        "create type mood as enum ('sad', 'so so'); create domain feeling as mood;"
        "create type moods as range (subtype = mood); create type pair as (a int, m mood[]);"
        "create table plain(id int primary key, v text, l int[]); create table direct(m mood primary key);"
        "create table arrays(m mood[]); create table domains(m feeling); create table ranges(m moods);"
        "create table pairs(p pair[])"
    )
    source.prepare_publication()
    shapes = {table.id.name: table.type_shape for table in source.tables().values()}
    mood = [part.split(" ", 2)[2] for part in shapes["direct"]]

    assert shapes["plain"] == ()
    assert sorted(mood) == ["sad", "so so"]
    assert shapes["arrays"] == shapes["domains"] == shapes["ranges"] == shapes["direct"]
    assert set(shapes["pairs"]) > set(shapes["direct"])
    assert sorted(p.split(" ")[2] for p in set(shapes["pairs"]) - set(shapes["direct"])) == ["a", "m"]
