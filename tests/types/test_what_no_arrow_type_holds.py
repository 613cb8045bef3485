"""Values that a column's Arrow type cannot hold take out their table, whichever way they come, and no other."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from etl_dagster.arrow import decode_column
from etl_dagster.errors import ValueUnrepresentable
from etl_dagster.model import TableId, ValuePolicy
from etl_dagster.model.choices import TableDefaults
from etl_dagster.pipeline import Pipeline
from etl_dagster.store.base import TableState
from tests.decoding.support import Connection, fields_of, fill
from tests.types.test_every_type import config_of, sync
from tests.types.walk import literal

# Declared type, value, and what is said of it.
ODD: list[tuple[str, str, str]] = [
    ("int4[]", "{{1,2},{3,4}}", "multi-dimensional array"),
    ("text[]", '{{"a,{","\\""}}', "multi-dimensional array"),
    ("int4[]", "[0:1]={1,2}", "array that does not count from 1"),
    ("int4[]", "[2:3][-1:0]={{1,2},{3,4}}", "multi-dimensional array"),
    ("numeric(10,2)", "NaN", "NaN or infinity in a numeric"),
    ("numeric(40,2)[]", "{1,NaN}", "NaN or infinity in a numeric"),
    ("timestamp", "294276-12-31 23:59:59.999999", "timestamp too far in the future"),
    ("timestamptz[]", "{294276-12-31Z}", "timestamp too far in the future"),
]
ODD_SINCE_15 = [
    ("interval", value, "interval with a time part beyond 292 years")
    for value in ("2562048 hours", "-2562047788 hours -54.775808 secs")
]
ODD_SINCE_17 = [("interval", word, "infinite interval") for word in ("infinity", "-infinity")]

# Arrays that travel as text have no limits.
AS_TEXT = {
    "inet[]": "[0:1]={10.0.0.1,NULL}",
    "box[]": "{{(1,1),(0,0)};{(2,2),(1,1)}}",
    "int4range[]": '{{"[1,2)"},{empty}}',
    "tsquery[]": "{{\"'a' & 'b'\"}}",
}


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        *ODD,
        *(pytest.param(*case, marks=pytest.mark.since(15)) for case in ODD_SINCE_15),
        *(pytest.param(*case, marks=pytest.mark.since(17)) for case in ODD_SINCE_17),
    ],
)
def test_both_forms_are_refused_with_the_same_words(database: str, declared: str, value: str, message: str) -> None:
    with psycopg.connect(database, autocommit=True, options="-c timezone=UTC") as connection:
        type_ = fill(connection, declared, [value, None])
        for text in (False, True):
            with pytest.raises(ValueUnrepresentable, match=rf"'v' has 1 value\(s\).*{message}") as caught:
                decode_column(type_, fields_of(connection, f"select v{'::text' * text} from v"), text=text, column="v")
            assert len(value) < 4 or value not in caught.value.message


def test_only_their_tables_are_taken_out_by_a_copy_and_by_a_change(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for way in ("copied", "streamed"):
            for number, (declared, _, _) in enumerate(ODD):
                make_table(connection, f"unsent_{way}_{number}", declared)
        make_table(
            connection, "sent_text", ", t".join(f"{'' if n == 0 else n - 1} {type_}" for n, type_ in enumerate(AS_TEXT))
        )
        insert(connection, "sent_text", list(AS_TEXT.values()))
        for number, (_, value, _) in enumerate(ODD):
            insert(connection, f"unsent_copied_{number}", [value])

        with closing(Pipeline(config_of(database, tmp_path))) as pipeline:
            sync(pipeline)
            assert set(quarantined(pipeline)) == {f"unsent_copied_{number}" for number in range(len(ODD))}
            for number, (_, value, _) in enumerate(ODD):
                insert(connection, f"unsent_streamed_{number}", [value])
            insert(connection, "sent_text", list(AS_TEXT.values()))
            sync(pipeline)

            reasons = quarantined(pipeline)
            assert len(reasons) == 2 * len(ODD)
            for name, reason in reasons.items():
                assert ODD[int(name.rpartition("_")[2])][2] in reason
            differences = pipeline.compare()
            assert differences.keys() == {TableId("public", "sent_text")}
            assert all(found.equal and found.rows == 2 for found in differences.values())


def make_table(connection: Connection, name: str, declared: str) -> None:
    connection.execute(f"create table {name} (id int generated always as identity primary key, v {declared})")


def insert(connection: Connection, name: str, values: list[str]) -> None:
    names = ", ".join(["v", *(f"t{n}" for n in range(len(values) - 1))])
    connection.execute(f"insert into {name} ({names}) values ({', '.join(map(literal, values))})")


def quarantined(pipeline: Pipeline) -> dict[str, str]:
    """Tables taken out, with the reason."""
    tables = pipeline.status().tables
    return {table.table.name: table.reason for table in tables if table.state is TableState.QUARANTINED}


@pytest.mark.parametrize("policy", ["null", "clamp", "text"])
def test_under_another_policy_no_table_is_taken_out(database: str, tmp_path: Path, policy: str) -> None:
    config = config_of(database, tmp_path)
    config = config.model_copy(update={"defaults": TableDefaults(values=ValuePolicy(policy))})
    with psycopg.connect(database, autocommit=True) as connection:
        for number, (declared, value, _) in enumerate(ODD):
            make_table(connection, f"unsent_{number}", declared)
            insert(connection, f"unsent_{number}", [value])
        with closing(Pipeline(config)) as pipeline:
            sync(pipeline)
            for number, (_, value, _) in enumerate(ODD):
                insert(connection, f"unsent_{number}", [value])
            sync(pipeline)

            assert quarantined(pipeline) == {}
            replaced = [dict(table.replaced) for table in pipeline.status().tables]
            assert replaced == [{} if policy == "text" else {"v": 2}] * len(ODD)
            differences = pipeline.compare().values()
            assert [found.equal for found in differences] == [policy == "text"] * len(ODD)
            assert [found.rows for found in differences] == [2] * len(ODD)
