"""The example project as a user starts it: its own processes, a real worker, real requests."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import celery_admin_runner
from tests.waiting import wait_until

EXAMPLE = Path(__file__).parent.parent / "example_project"
START_SECONDS = 90
STOP_SECONDS = 30
#: What the tests set for themselves, and a user of the example has not set.
FOREIGN = ("DJANGO_SETTINGS_MODULE", "DATABASE_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")

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


class Demo:
    """A running ``manage.py demo``, and a browser without a screen."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}/admin/"
        self._printed = folder / "printed.txt"
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self._cookies)
        )
        with self._printed.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "demo", "--port", str(port)],
                cwd=EXAMPLE,
                env=environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    def has_come_up(self) -> bool:
        assert self.process.poll() is None, self.printed
        return "The demo runs:" in self.printed

    def log_in(self, user: str) -> str:
        """Log in, and return the page that answers."""
        self._opener.open(f"{self.url}login/", timeout=20).close()
        form = {"username": user, "password": user, "next": "/admin/", **self._token("form")}
        data = urllib.parse.urlencode(form).encode()
        with self._opener.open(f"{self.url}login/", data, timeout=20) as response:
            return str(response.read().decode())

    def run(self, task_name: str, **call: object) -> dict[str, str]:
        """Run a task by the JSON API, and return what it answers."""
        request = urllib.request.Request(
            f"{self.url}celery_admin_runner/celerytask/{task_name}/run/",
            json.dumps(call).encode(),
            {"Content-Type": "application/json", **self._token("header")},
        )
        with self._opener.open(request, timeout=20) as response:
            assert response.status == 201
            return dict(json.load(response))

    def press(self, button: str, **form: object) -> str:
        """Press a button of a page of the journal, or of another; return what answers."""
        data = urllib.parse.urlencode({**form, **self._token("form")}, doseq=True).encode()
        base = "" if button.startswith("shop/") else "celery_admin_runner/taskrunrecord/"
        with self._opener.open(f"{self.url}{base}{button}", data, timeout=20) as response:
            return str(response.read().decode())

    def confirm(self, button: str, **form: object) -> str:
        """Press a button, and say yes to the question that answers."""
        page = self.press(button, **form)
        shown = re.findall(r'name="(known|_confirmed)" value="([^"]*)"', page)
        return self.press(button, **form, **dict(shown))

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Ask the demo's database."""
        with closing(sqlite3.connect(self.folder / "db.sqlite3")) as database:
            return database.execute(query, values).fetchall()

    def processes(self) -> list[int]:
        """Return the ids of the demo's processes, however they descend from it."""
        mark = f"EXAMPLE_VAR={self.folder}".encode()
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and mark in environ_of(entry)
        ]

    def _token(self, kind: str) -> dict[str, str]:
        name = {"form": "csrfmiddlewaretoken", "header": "X-CSRFToken"}[kind]
        return {name: next(c.value or "" for c in self._cookies if c.name == "csrftoken")}


def environ_of(entry: Path) -> list[bytes]:
    """Return the environment of a process; empty if it has ended."""
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user, but with a folder of the test's own."""
    own = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    package = Path(celery_admin_runner.__file__).parent.parent
    return {**own, "EXAMPLE_VAR": str(folder), "PYTHONPATH": str(package)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_demo(folder: Path) -> Iterator[Demo]:
    demo = Demo(folder, free_port())
    try:
        wait_until(demo.has_come_up, seconds=START_SECONDS, why="The demo does not come up")
        yield demo
    finally:
        for process in demo.processes():
            os.kill(process, signal.SIGKILL)
        demo.process.wait()


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


def test_the_project_has_nothing_to_complain_of_its_tasks(tmp_path: Path) -> None:
    command = [sys.executable, "manage.py", "check", "--fail-level", "WARNING"]

    answer = subprocess.run(
        command, cwd=EXAMPLE, env=environment(tmp_path), capture_output=True, text=True
    )

    assert answer.returncode == 0, answer.stderr


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


def output_of(demo: Demo, key: object) -> str:
    """Return what the run with this primary key has printed and logged so far."""
    rows = demo.rows(f"SELECT text FROM {OUTPUT} WHERE run_id = ? ORDER BY seq", key)
    return "".join(str(text) for (text,) in rows)


def command_of(pid: int) -> list[bytes]:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
