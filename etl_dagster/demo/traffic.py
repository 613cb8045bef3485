"""What the shop's own programs do all day: transactions over several tables, at a steady rate."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg

from etl_dagster.demo.schema import PROMOTIONS, REFILL_PROMOTIONS

# Work is paced in slices of this length.
_SLICE_SECONDS = 0.05
_TRUNCATE_EVERY_SECONDS = 10.0


class RolledBackError(Exception):
    """The transaction is given up on purpose."""


Action = Callable[["Worker"], None]


@dataclass
class Tally:
    """What was committed so far."""

    transactions: int = 0
    rolled_back: int = 0
    changes: int = 0
    truncates: int = 0


@dataclass
class Worker:
    """One program of the shop, with a connection of its own.

    Args:
        sizes: Rows that each table began with.
        seed: Makes its choices repeatable.
    """

    dsn: str
    sizes: dict[str, int]
    rate: float
    seed: int
    actions: dict[str, int]
    tally: Tally = field(default_factory=Tally)
    connection: psycopg.Connection[Any] = field(init=False)
    changes: int = 0

    def run(self, stop: threading.Event) -> None:
        """Work at the given rate until told to stop."""
        self.dice = random.Random(self.seed)  # noqa: S311  nothing secret
        with psycopg.connect(self.dsn, application_name="demo traffic") as self.connection:
            started = time.monotonic()
            while not stop.is_set():
                due = (time.monotonic() - started) * self.rate
                while self.tally.changes < due and not stop.is_set():
                    self._one_transaction()
                stop.wait(_SLICE_SECONDS)

    def _one_transaction(self) -> None:
        (name,) = self.dice.choices(list(self.actions), weights=list(self.actions.values()))
        self.changes = 0
        try:
            with self.connection.transaction():
                ACTIONS[name](self)
        except (RolledBackError, psycopg.errors.DeadlockDetected):
            self.tally.rolled_back += 1
            return
        self.tally.transactions += 1
        self.tally.changes += self.changes
        self.tally.truncates += name == "renew_promotions"

    def do(self, statement: LiteralString, **values: object) -> None:
        """Run one statement and count the rows that it changed."""
        self.changes += max(0, self.connection.execute(statement, values).rowcount)

    def some(self, table: str) -> int:
        """An id from the rows that the table began with; the row may be gone by now."""
        return self.dice.randint(1, self.sizes[table])


def place_order(worker: Worker) -> None:
    worker.do(
        """with placed as (
               insert into shop.orders (customer_id, channel, note, client, ship_by)
               values (%(customer)s, 'web', %(note)s, '2001:db8::1', current_date + 3) returning id),
           items as (
               insert into shop.order_items (order_id, line, product_id, quantity, unit_price)
               select placed.id, line, (%(product)s + line) %% %(products)s + 1, line, line * 9.99
               from placed, generate_series(1, %(lines)s) line)
           insert into shop.payments (order_id, amount, method, details)
           select id, %(lines)s * 9.99, 'card', jsonb_build_object('last4', '4242') from placed""",
        customer=worker.some("customers"),
        note=worker.dice.choice([None, "", "gift — please wrap", 'says "hello"\n\tand more']),
        product=worker.some("products"),
        products=worker.sizes["products"],
        lines=(lines := worker.dice.randint(1, 8)),
    )
    worker.changes += lines + 1  # the other two inserts of the statement
    worker.do(
        "update shop.stock set on_hand = greatest(0, on_hand - 1) where product_id = %(product)s",
        product=worker.some("products"),
    )


def advance_orders(worker: Worker) -> None:
    worker.do(
        """update shop.orders set status = 'shipped', total = total + 0.01
           where id between %(first)s and %(first)s + 9 and status < 'shipped'""",
        first=worker.some("orders"),
    )


def change_price(worker: Worker) -> None:
    """The long description stays as it is, and so does not travel."""
    worker.do(
        "update shop.products set price = price * 1.01, weight = 'NaN' where id = %(id)s",
        id=worker.some("products"),
    )


def rewrite_description(worker: Worker) -> None:
    worker.do(
        """update shop.products set description =
               (select string_agg(md5(%(salt)s || part), ' ') from generate_series(1, 100) part)
           where id = %(id)s""",
        id=worker.some("products"),
        salt=str(worker.dice.random()),
    )


def visit(worker: Worker) -> None:
    worker.do(
        """update shop.customers set updated_at = clock_timestamp(),
               preferences = preferences || jsonb_build_object('visits', %(visits)s::int), tags = tags || 'seen'::text
           where id = %(id)s and cardinality(tags) < 50""",
        id=worker.some("customers"),
        visits=worker.dice.randint(1, 1000),
    )


def cancel_order(worker: Worker) -> None:
    order = worker.some("orders")
    worker.do("delete from shop.order_items where order_id = %(order)s", order=order)
    worker.do("delete from shop.payments where order_id = %(order)s", order=order)
    worker.do("delete from shop.orders where id = %(order)s", order=order)


def renumber_items(worker: Worker) -> None:
    """Changes part of a key."""
    worker.do(
        "update shop.order_items set line = line + 100 where order_id = %(order)s and line < 100",
        order=worker.some("orders"),
    )


def merge_customer(worker: Worker) -> None:
    """Changes a key, and uses the old one again."""
    customer = worker.some("customers")
    worker.do(
        """update shop.customers set id = (select max(id) + 1 from shop.customers)
           where id = %(id)s""",
        id=customer,
    )
    worker.do(
        """insert into shop.customers (id, email, name) values (%(id)s, %(email)s, 'Newcomer')
           on conflict do nothing""",
        id=customer,
        email=f"newcomer{worker.dice.random()}@example.com",
    )


def recount(worker: Worker) -> None:
    worker.do(
        """update shop.stock set on_hand = on_hand + 10, counted_at = clock_timestamp(),
               shelf = 'shelf ' || %(shelf)s::int
           where product_id between %(first)s and %(first)s + 4""",
        first=worker.some("products"),
        shelf=worker.dice.randint(1, 100),
    )


def move_stock(worker: Worker) -> None:
    """Deletes a row and inserts its key again within one transaction."""
    product = worker.some("products")
    worker.do("delete from shop.stock where warehouse = 'W1' and product_id = %(product)s", product=product)
    worker.do("insert into shop.stock values ('W1', %(product)s, 'ramp', 1, 'infinity')", product=product)


def change_mind(worker: Worker) -> None:
    """None of this may ever arrive."""
    worker.do("update shop.orders set note = 'never committed' where id = %(id)s", id=worker.some("orders"))
    worker.do("delete from shop.payments where order_id = %(id)s", id=worker.some("orders"))
    raise RolledBackError


def renew_promotions(worker: Worker) -> None:
    worker.do("truncate shop.promotions")
    worker.do(REFILL_PROMOTIONS, rows=PROMOTIONS)


ACTIONS: dict[str, Action] = {
    action.__name__: action
    for action in (
        place_order,
        advance_orders,
        change_price,
        rewrite_description,
        visit,
        cancel_order,
        renumber_items,
        merge_customer,
        recount,
        move_stock,
        change_mind,
        renew_promotions,
    )
}
COUNTER = {
    "place_order": 40,
    "advance_orders": 15,
    "visit": 25,
    "cancel_order": 10,
    "merge_customer": 2,
    "change_mind": 3,
}
WAREHOUSE = {"recount": 30, "move_stock": 20, "change_price": 15, "rewrite_description": 5, "renumber_items": 10}
# The truncate waits for its own time, so that a short demo sees one too.
OFFICE = {"renew_promotions": 1}


class Traffic:
    """All programs of the shop, each in a thread.

    Args:
        rate: Changes per second, all together.
    """

    def __init__(self, dsn: str, sizes: dict[str, int], rate: float) -> None:
        self._stop = threading.Event()
        self._workers = [
            Worker(dsn, sizes, rate * 0.7, 1, COUNTER),
            Worker(dsn, sizes, rate * 0.3, 2, WAREHOUSE),
            Worker(dsn, sizes, PROMOTIONS / _TRUNCATE_EVERY_SECONDS, 3, OFFICE),
        ]
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"traffic-{worker.seed}", daemon=True)
            for worker in self._workers
        ]
        self._failure: psycopg.Error | None = None

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all transactions; safe to call twice."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def check(self) -> None:
        """Raise what made a program fail."""
        if self._failure is not None:
            raise self._failure

    def _work(self, worker: Worker) -> None:
        try:
            worker.run(self._stop)
        except psycopg.Error as error:
            self._failure = error

    @property
    def tally(self) -> Tally:
        """What was committed so far, by all of them."""
        return Tally(
            *(sum(column) for column in zip(*(_numbers(worker.tally) for worker in self._workers), strict=True))
        )


def _numbers(tally: Tally) -> tuple[int, int, int, int]:
    return tally.transactions, tally.rolled_back, tally.changes, tally.truncates
