"""The example project as a user starts it: its own processes, a real worker, real requests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demos import EXAMPLE, START_SECONDS, Demo, Visitor, environment, running_demo
from tests.waiting import wait_until

STOP_SECONDS = 30

JOURNAL = "celery_admin_runner_taskrunrecord"
OUTPUT = "celery_admin_runner_taskrunoutput"
#: Arguments for the shop's tasks, as JSON.
CALLS: dict[str, list[object]] = {
    "add_vat": ["10.50", 10],
    "call_webhook": ["https://example.com/hook", {"a": 1}],
    "check_warehouse_link": ["linz", 1],
    "close_month": [2026, 10],
    "count_orders_by_weekday": [],
    "export_orders": ["2026-01-01", "2026-12-31", ["id", "total"], "json"],
    "import_prices": ["north", 0.1],
    "legacy_report": ["sales", "intro", {"pages": 3}],
    "print_label": [
        {"name": "Ida", "street": "Gasse 1", "postcode": "1010", "city": "Wien"},
        "12345678-1234-5678-1234-567812345678",
    ],
    "rebuild_search_index": [2, 0.1],
    "reconcile_payments": ["2026-11-01"],
    "remind_unpaid_orders": ["P3D", "2026-11-01T12:00:00Z"],
    "restock_products": [[1, 2], 5, ["graz", "linz"]],
    "rotate_api_key": ["bank", "a new secret key"],
    "send_newsletter": [{"subject": "Tea", "body": "New!", "reply_to": "a@example.com"}, 3],
    "sync_all_warehouses": [True],
    "sync_stock": ["graz", "2026-01-02", True],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo; what one test leaves there, the next one finds."""
    return tmp_path_factory.mktemp("example")


def test_a_busy_port_is_a_clear_error_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        demo = Demo(tmp_path, port)
        code = demo.process.wait(START_SECONDS)

    assert code == 1
    assert f"Port {port} is in use by another program" in demo.printed
    assert "Traceback" not in demo.printed
    assert not (tmp_path / "db.sqlite3").exists()


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_what_is_no_port_is_a_clear_error(tmp_path: Path, port: str) -> None:
    command = [sys.executable, "manage.py", "demo", "--port", port]

    answer = subprocess.run(
        command, cwd=EXAMPLE, env=environment(tmp_path), capture_output=True, text=True
    )

    assert answer.returncode == 2
    assert f"'{port}' is no port" in answer.stderr


def test_the_demo_runs_each_task_on_a_real_worker_and_stops_when_asked(folder: Path) -> None:
    with running_demo(folder) as demo:
        front_page = demo.log_in("admin")
        [(order, customer)] = demo.rows("SELECT max(id), max(customer_id) FROM shop_order")
        calls = {
            **CALLS,
            "refund_order": [order, "0.50"],
            "send_receipt": [order],
            "email_customer": [customer, "Tea"],
        }
        runs = {
            name: demo.run(f"shop.tasks.{name}", args=args, reason="To try it")
            for name, args in calls.items()
        }

        def states() -> dict[str, str]:
            rows = dict(demo.rows(f"SELECT task_id, state FROM {JOURNAL}"))
            return {name: str(rows[run["task_id"]]) for name, run in runs.items()}

        wait_until(
            lambda: set(states().values()) <= {"SUCCESS", "FAILURE"},
            seconds=60,
            why="The runs do not end",
        )
        ended = states()
        demo.process.send_signal(signal.SIGTERM)
        code = demo.process.wait(STOP_SECONDS)

        assert "<strong>admin</strong>" in front_page
        assert ended == dict.fromkeys(calls, "SUCCESS") | {"reconcile_payments": "FAILURE"}
        assert re.search(r"admin / admin\n +operator / operator\n +auditor / a", demo.printed)
        assert re.search(r"customer / customer\n +customer2 / customer2\n", demo.printed)
        assert demo.printed.endswith("Stopped.\n")
        assert code == 0
        assert demo.processes() == []


def test_a_dead_worker_is_reported_with_the_end_of_its_log(folder: Path) -> None:
    with running_demo(folder) as demo:
        workers = [pid for pid in demo.processes() if b"worker" in command_of(pid)]
        os.kill(min(workers), signal.SIGKILL)
        code = demo.process.wait(STOP_SECONDS)

        assert code == 1
        assert "The worker process ended with code -9. The end of" in demo.printed
        assert "ready." in demo.printed
        assert demo.processes() == []


def test_the_past_is_written_only_once(folder: Path) -> None:
    query = f"SELECT count(*) FROM {JOURNAL} WHERE worker = 'worker@shop'"
    with running_demo(folder) as demo:
        before = demo.rows(query)
        demo.process.send_signal(signal.SIGINT)
        code = demo.process.wait(STOP_SECONDS)

    with running_demo(folder) as demo:
        after = demo.rows(query)

    assert code == 0
    assert before == after
    assert before > [(100,)]


@pytest.mark.parametrize("command", ["check --fail-level WARNING", "makemigrations --check"])
@pytest.mark.parametrize("websocket", ["0", "1"])
def test_the_project_has_nothing_to_complain_of(
    tmp_path: Path, command: str, websocket: str
) -> None:
    line = [sys.executable, "manage.py", *command.split()]
    env = {**environment(tmp_path), "EXAMPLE_WEBSOCKET": websocket}

    answer = subprocess.run(line, cwd=EXAMPLE, env=env, capture_output=True, text=True)

    assert answer.returncode == 0, answer.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo in which the operator is logged in, for the tests from here on."""
    with running_demo(tmp_path_factory.mktemp("shared")) as demo:
        demo.log_in("operator")
        yield demo


def test_an_operator_may_not_run_what_asks_for_more(demo: Demo) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        demo.run("shop.tasks.rotate_api_key", args=["bank", "a new secret key"])

    refused.value.close()
    assert refused.value.code == 403


def test_a_run_tells_how_far_it_is_and_can_be_cancelled_and_run_again(demo: Demo) -> None:
    run = demo.run("shop.tasks.rebuild_search_index", args=[500, 0.05])
    [(key,)] = demo.rows(f"SELECT id FROM {JOURNAL} WHERE task_id = ?", run["task_id"])

    def now(column: str) -> object:
        [(value,)] = demo.rows(f"SELECT {column} FROM {JOURNAL} WHERE id = ?", key)
        return value

    wait_until(lambda: now("progress_current"), why="It tells of no progress")
    wait_until(lambda: output_of(demo, key), why="It shows no output")
    demo.press(f"{key}/cancel/", how="")
    wait_until(lambda: now("state") == "REVOKED", why="It does not stop")
    demo.press(f"{key}/run-again/")

    again = demo.rows(f"SELECT id FROM {JOURNAL} WHERE retry_of_id = ?", key)
    assert now("progress_total") == 500
    assert "cancelled while it ran" in str(now("exception"))
    assert "Step 1 of 500: " in output_of(demo, key)
    assert len(again) == 1


def test_the_past_has_runs_of_every_kind(demo: Demo) -> None:
    past = "worker = 'worker@shop'"
    states = {state for (state,) in demo.rows(f"SELECT state FROM {JOURNAL} WHERE {past}")}

    [(again, children)] = demo.rows(
        f"SELECT count(retry_of_id), sum(parent_id <> '') FROM {JOURNAL} WHERE {past}"
    )
    [(told,)] = demo.rows(f"SELECT count(*) FROM {OUTPUT}")

    assert states == {"SUCCESS", "FAILURE", "REVOKED", "LOST"}
    assert (again, children) == (1, 3)
    assert told > 100


def test_a_run_is_scheduled_for_the_night_and_another_waits_for_it(demo: Demo) -> None:
    night = "label LIKE '%night%' AND run_by_name = 'operator'"

    rows = demo.rows(f"SELECT state, due_at IS NULL FROM {JOURNAL} WHERE {night} ORDER BY id")
    [(links,)] = demo.rows(f"SELECT count(*) FROM {JOURNAL}_depends_on")

    assert rows == [("SCHEDULED", 0), ("WAITING", 1)]
    assert links == 1


def test_what_a_task_starts_is_in_the_journal_with_who_asked_for_it(demo: Demo) -> None:
    run = demo.run("shop.tasks.sync_all_warehouses")
    query = f"SELECT state, source, run_by_name, result FROM {JOURNAL} WHERE parent_id = ?"

    def children() -> list[tuple[object, ...]]:
        return [row for row in demo.rows(query, run["task_id"]) if row[0] == "SUCCESS"]

    wait_until(lambda: len(children()) == 3, why="The children do not end")

    assert {row[:3] for row in children()} == {("SUCCESS", "code", "operator")}
    assert all("taken over" in str(row[3]) for row in children())


def states_about(demo: Demo, order: object) -> list[tuple[object, ...]]:
    """Return task and state of what was run about an order since the demo is up."""
    query = f"SELECT task_name, state FROM {JOURNAL} WHERE object_id = ? AND worker <> ?"
    return demo.rows(f"{query} ORDER BY id", str(order), "worker@shop")


def test_an_order_is_shipped_after_it_was_taken_from_the_shelf(demo: Demo) -> None:
    query = "SELECT o.id FROM shop_order o JOIN shop_product p ON p.id = o.product_id"
    [(order,), *_] = demo.rows(f"{query} WHERE picked_at IS NULL AND stock >= quantity")

    demo.confirm(f"shop/order/{order}/runs/shop.models.Order.ship/")

    names = [f"shop.models.Order.{name}" for name in ("pick", "ship")]
    done = sorted((name, "SUCCESS") for name in names)
    wait_until(lambda: sorted(states_about(demo, order)) == done, why="It is not shipped")
    [(is_shipped,)] = demo.rows("SELECT shipped_at > picked_at FROM shop_order WHERE id=?", order)
    assert is_shipped


def test_a_receipt_is_sent_once_the_payment_is_committed_and_not_again(demo: Demo) -> None:
    [(order,), *_] = demo.rows("SELECT id FROM shop_order WHERE paid_at IS NULL")
    form = {"action": "mark_as_paid", "_selected_action": order}

    def states() -> list[object]:
        return [state for _name, state in states_about(demo, order)]

    demo.press("shop/order/", **form)
    wait_until(lambda: states() == ["SUCCESS"], why="No receipt is sent")
    demo.press("shop/order/", **form)

    query = f"SELECT run_by_name, reason FROM {JOURNAL} WHERE object_id = ?"
    assert states() == ["SUCCESS", "IGNORED"]
    assert set(demo.rows(query, str(order))) == {("operator", "It was paid")}


def test_a_second_import_of_a_supplier_is_refused_while_the_first_one_runs(demo: Demo) -> None:
    demo.run("shop.tasks.import_prices", args=["south", 3])

    with pytest.raises(urllib.error.HTTPError) as refused:
        demo.run("shop.tasks.import_prices", args=["south", 1])

    with refused.value as answer:
        assert answer.code == 400
        assert "active" in answer.read().decode()


def test_a_command_of_the_shop_is_a_task(demo: Demo) -> None:
    run = demo.run(
        "command.shop.price_list",
        kwargs={"skus": ["T-001"], "columns": ["name"], "header": False},
    )
    query = f"SELECT id FROM {JOURNAL} WHERE task_id = ? AND state = 'SUCCESS'"

    wait_until(lambda: demo.rows(query, run["task_id"]), why="The list is not printed")

    [(key,)] = demo.rows(query, run["task_id"])
    assert output_of(demo, key) == "Kettle\n"


def test_products_are_restocked_in_one_run(demo: Demo) -> None:
    stock = "SELECT stock FROM shop_product WHERE id IN (1, 2) ORDER BY id"
    before = [number for (number,) in demo.rows(stock)]
    task = "shop.tasks.restock_products"

    demo.confirm("shop/product/run-task-for-selected/", task=task, _selected_action=[1, 2])

    after = [(number + 10,) for number in before]
    wait_until(lambda: demo.rows(stock) == after, why="They are not restocked")


def test_a_page_shows_what_a_worker_has_worked_out(demo: Demo) -> None:
    page = demo.press("shop/product/", action="show_gross_price", _selected_action=1)

    assert "T-001 Kettle: 41.88 euros" in page


def build(demo: Demo, customer: Visitor, period: str) -> str:
    """Let a customer build a report; return the path of its page once its run has ended."""
    customer.open("reports/", period=period)
    wait_until(
        lambda: all(run["finished"] for run in customer.runs()), why="The report is not built"
    )
    [(key,)] = demo.rows("SELECT max(id) FROM shop_report")
    return f"reports/{key}/"


def test_a_customer_builds_a_report_and_is_led_to_it(demo: Demo) -> None:
    customer = Visitor(demo, "customer")

    page = build(demo, customer, "all")

    run, *_ = customer.runs()
    assert (run["label"], run["state"]) == ("My orders: everything so far", "SUCCESS")
    assert run["url"] == f"/{page}"
    assert "What you like best" in customer.open(page)


def test_a_report_that_fails_tells_its_customer_so_and_no_more(demo: Demo) -> None:
    customer = Visitor(demo, "customer")

    page = customer.open(build(demo, customer, "archive"))

    run, *_ = customer.runs()
    assert (run["label"], run["state"]) == ("My orders: the years before", "FAILURE")
    assert "This report could not be built." in page
    assert "ConnectionError" not in page
    assert "not built" in customer.open("reports/")


def test_nobody_but_its_owner_opens_a_report(demo: Demo) -> None:
    page = build(demo, Visitor(demo, "customer"), "week")

    answers = {name: Visitor(demo, name).answer_to(page) for name in ("customer2", "admin")}

    assert answers == {"customer2": 404, "admin": 404}
    assert "Password" in Visitor(demo).open(page)


def test_no_customer_is_shown_the_reports_of_another_or_may_mark_them_as_seen(demo: Demo) -> None:
    build(demo, Visitor(demo, "customer"), "week")
    [(run,)] = demo.rows(f"SELECT max(id) FROM {JOURNAL}")
    other = Visitor(demo, "customer2")

    page = other.open("reports/")

    assert "the last 7 days" not in page
    assert other.runs() == []
    assert other.answer_to("task-runs/seen/", ids=str(run)) == 403
    assert demo.rows(f"SELECT seen_at FROM {JOURNAL} WHERE id = ?", run) == [(None,)]


def test_staff_build_a_report_again_from_the_admin(demo: Demo) -> None:
    customer, operator = Visitor(demo, "customer"), Visitor(demo, "operator")
    page = build(demo, customer, "month")
    key = page.split("/")[1]
    built_at = f"SELECT built_at FROM shop_report WHERE id = {key}"
    before = demo.rows(built_at)

    demo.run("shop.tasks.build_report", args=[key])
    answer = operator.answer_to("reports/")

    assert answer == 200
    wait_until(lambda: demo.rows(built_at) != before, why="It is not built again")
    assert "Still to pay" in customer.open(page)


def test_the_front_page_leads_staff_and_customers_to_their_pages(demo: Demo) -> None:
    nobody, customer = Visitor(demo), Visitor(demo, "customer")

    page = nobody.open("")

    assert 'href="/admin/"' in page
    assert 'href="/reports/"' in page
    assert "Hello, Anna" in customer.open("")
    assert "Hello" not in customer.open("logout/", next="/")


def output_of(demo: Demo, key: object) -> str:
    """Return what the run with this primary key has printed and logged so far."""
    rows = demo.rows(f"SELECT text FROM {OUTPUT} WHERE run_id = ? ORDER BY seq", key)
    return "".join(str(text) for (text,) in rows)


def command_of(pid: int) -> list[bytes]:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
