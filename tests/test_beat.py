"""Locked schedulers: one beat sends, and whoever takes over knows what was sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from queue import Empty

import pytest
from django.apps import apps
from django.conf import settings
from django.db import DatabaseError, OperationalError, connection
from kombu.utils.imports import symbol_by_name

from celery_admin_runner import beat, leadership, leases
from celery_admin_runner.beat import LockedPersistentScheduler
from celery_admin_runner.exceptions import BeatMisconfigured
from celery_admin_runner.leases import database_now, elapsed
from celery_admin_runner.models import Lease
from celery_admin_runner.querysets import LeaseQuerySet
from tests.beat_app import ENTRY, EVERY, QUEUE, SCHEDULE, TASK
from tests.celery_app import app
from tests.waiting import wait_until

LEASE = "beat tests"
#: Of the beats that are processes of their own, in seconds.
LEASE_SECONDS = 2
with_database_scheduler = pytest.mark.skipif(
    not apps.is_installed("django_celery_beat"),
    reason="django-celery-beat (extra [beat]) is not installed",
)
KINDS = ["persistent", pytest.param("database", marks=with_database_scheduler)]


#: The schedulers of a test.
made: list[leadership.LockedScheduler] = []


@pytest.fixture(autouse=True)
def _no_last_words() -> Iterator[None]:
    """Let no scheduler write its last runs when this process ends: the tables are gone then."""
    yield
    while made:
        made.pop().is_leading = False


class Sending:
    """A scheduler that notes the number of each run that it would send; it needs no broker."""

    producer = None

    def send_task(self, *args, **kwargs):
        self.sent = [*getattr(self, "sent", []), self._reserved.total_run_count]


class Persistent(Sending, LockedPersistentScheduler):
    pass


def make_scheduler(kind: str = "persistent"):
    """Make a beat in this process that sends to nobody."""
    if kind == "persistent":
        scheduler = Persistent(app=app)
    else:
        scheduler = type("Database", (Sending, beat.LockedDatabaseScheduler), {})(app=app)
    made.append(scheduler)
    return scheduler


def make_schedule(kind: str, every: float, patch: pytest.MonkeyPatch | None = None) -> None:
    """Have an entry that is due every so many seconds."""
    if kind == "persistent":
        patch.setitem(app.conf, "beat_schedule", {ENTRY: {**SCHEDULE[ENTRY], "schedule": every}})
        return
    models = apps.get_app_config("django_celery_beat").models_module
    interval = models.IntervalSchedule.objects.create(
        every=round(every * 1_000_000), period=models.IntervalSchedule.MICROSECONDS
    )
    models.PeriodicTask.objects.create(name=ENTRY, task=TASK, queue=QUEUE, interval=interval)


def numbers(scheduler) -> int:
    """Return how many runs of the entry are booked."""
    return scheduler.schedule[ENTRY].total_run_count


def free_the_lease() -> None:
    """Let the lease run out, as the database sees it, without its holder's doing."""
    past = database_now("default") - timedelta(seconds=1)
    assert Lease.objects.filter(name=LEASE).update(expires_at=past)


def tick_until_sent(scheduler, number: int) -> None:
    wait_until(lambda: scheduler.tick() is None or len(getattr(scheduler, "sent", [])) >= number)


@pytest.fixture(params=KINDS)
def kind(request, transactional_db, monkeypatch) -> str:
    """Each kind of scheduler, with an entry that is due all the time, and no other."""
    monkeypatch.setitem(app.conf, "result_expires", None)
    monkeypatch.setitem(app.conf, "beat_schedule", {})
    make_schedule(request.param, 0.02, monkeypatch)
    return request.param


def test_one_of_two_beats_sends(kind):
    first, second = make_scheduler(kind), make_scheduler(kind)
    tick_until_sent(first, 2)

    assert second.tick() == 5
    assert second.is_leading is False
    assert first.sent == [1, 2]


def test_a_beat_that_ends_cleanly_gives_the_lease_back_at_once(kind):
    first, second = make_scheduler(kind), make_scheduler(kind)
    tick_until_sent(first, 2)

    first.close()
    first.close()
    tick_until_sent(second, 1)

    assert second.sent == [3]


def test_whoever_takes_over_from_a_dead_beat_sends_nothing_twice(kind):
    first, second = make_scheduler(kind), make_scheduler(kind)
    tick_until_sent(first, 2)
    booked = first.bookings[ENTRY]

    free_the_lease()
    second.tick()

    taken_over = second.schedule[ENTRY]
    sent = len(getattr(second, "sent", []))
    assert taken_over.total_run_count == 2 + sent
    assert taken_over.last_run_at >= booked.last_run_at
    tick_until_sent(second, 1)
    assert second.sent[0] == 3


def test_a_beat_that_lost_its_lease_sends_nothing_and_stands_by(kind):
    first, second = make_scheduler(kind), make_scheduler(kind)
    tick_until_sent(first, 1)
    free_the_lease()
    second.tick()

    # It does not know yet: its own clock says that the lease is its own for a minute.
    wait_until(lambda: first.tick() and not first.is_leading)

    assert first.sent == [1]
    tick_until_sent(second, 1)
    assert second.sent[0] == 2


def test_a_beat_that_slept_longer_than_its_lease_sends_nothing(kind, monkeypatch):
    scheduler = make_scheduler(kind)
    tick_until_sent(scheduler, 1)

    def keep_and_sleep(self, data, *, keep=LeaseQuerySet.keep):
        answer = keep(self, data)
        monkeypatch.setattr(leases, "elapsed", lambda: elapsed() + 60)
        return answer

    monkeypatch.setattr(LeaseQuerySet, "keep", keep_and_sleep)
    wait_until(lambda: scheduler.tick() is None or numbers(scheduler) == 2)

    assert scheduler.sent == [1]
    # Nobody else took it: the next tick renews it, and goes on behind what was booked.
    monkeypatch.setattr(LeaseQuerySet, "keep", keep_and_sleep.__kwdefaults__["keep"])
    tick_until_sent(scheduler, 2)
    assert scheduler.sent == [1, 3]


def test_a_beat_killed_between_booking_and_sending_misses_one_run(kind, monkeypatch):
    first, second = make_scheduler(kind), make_scheduler(kind)
    tick_until_sent(first, 1)

    def die(*args, **kwargs):
        raise SystemExit

    monkeypatch.setattr(type(first), "send_task", die)
    with pytest.raises(SystemExit):
        wait_until(lambda: first.tick() is None)
    free_the_lease()
    monkeypatch.undo()
    monkeypatch.setitem(app.conf, "result_expires", None)
    make_schedule(kind, 0.02, monkeypatch) if kind == "persistent" else None
    tick_until_sent(second, 1)

    assert second.sent == [3]


def test_without_its_database_a_beat_sends_nothing_and_goes_on_afterwards(kind, monkeypatch):
    scheduler = make_scheduler(kind)
    tick_until_sent(scheduler, 1)

    def be_away(*args, **kwargs):
        raise OperationalError("server closed the connection")

    with monkeypatch.context() as patch:
        patch.setattr(LeaseQuerySet, "keep", be_away)
        wait_until(lambda: scheduler.tick() and not scheduler.is_leading)
        assert scheduler.sent == [1]
    tick_until_sent(scheduler, 2)

    assert scheduler.sent == [1, 2]


def test_a_signal_in_the_middle_of_a_tick_leaves_the_end_to_the_end(kind, monkeypatch):
    scheduler = make_scheduler(kind)

    def be_interrupted(*args, **kwargs):
        scheduler.close()
        raise SystemExit

    monkeypatch.setattr(type(scheduler), "send_task", be_interrupted)
    with pytest.raises(SystemExit):
        wait_until(lambda: scheduler.tick() is None)
    assert scheduler.is_leading
    scheduler.close()

    assert Lease.objects.get(name=LEASE).holder is None


def test_a_beat_ends_also_when_the_lease_can_not_be_given_back(kind, monkeypatch, caplog):
    scheduler = make_scheduler(kind)
    tick_until_sent(scheduler, 1)

    def be_away(*args, **kwargs):
        raise DatabaseError("away")

    monkeypatch.setattr(LeaseQuerySet, "give_back", be_away)
    scheduler.close()

    assert "it runs out: away" in caplog.text


def test_a_beat_looks_and_renews_in_time(kind):
    first, second = make_scheduler(kind), make_scheduler(kind)
    first.tick()

    assert first.claim.seconds / 4 == 15
    assert all(first.tick() <= 15 for _ in range(3))
    assert second.tick() <= 6


def test_a_beat_says_that_the_clock_of_the_one_before_was_ahead(kind, caplog):
    first, second = make_scheduler(kind), make_scheduler(kind)
    tick_until_sent(first, 1)
    data = {"entries": {ENTRY: ["2999-01-01T00:00:00+00:00", 7]}}
    Lease.objects.filter(name=LEASE).update(data=data)
    free_the_lease()

    second.tick()

    assert "ahead of ours" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        *(["x"], {"x": 1}, {"entries": 1}, {"entries": {ENTRY: None}}, {"entries": {ENTRY: []}}),
        {"entries": {ENTRY: ["yesterday", 7]}},
        {"entries": {ENTRY: ["2026-01-01T00:00:00", 7]}},
        {"entries": {ENTRY: ["0001-01-01T00:00:00+14:00", 7]}},
        {"entries": {ENTRY: ["2026-01-01T00:00:00+00:00", "many"]}},
    ],
)
def test_damaged_data_in_the_lease_end_no_beat(data, caplog):
    assert leadership._from_data(data) == {}

    assert "can't be read" in caplog.text


def test_a_beat_takes_over_from_a_lease_with_damaged_data(kind, caplog):
    first, second = make_scheduler(kind), make_scheduler(kind)
    tick_until_sent(first, 1)
    Lease.objects.filter(name=LEASE).update(data={"entries": {ENTRY: ["x", 7]}})
    free_the_lease()

    tick_until_sent(second, 1)

    assert "can't be read" in caplog.text
    assert second.is_leading


@pytest.fixture
def periodic_task(transactional_db, monkeypatch):
    """A row of django-celery-beat that is due all the time."""
    monkeypatch.setitem(app.conf, "result_expires", None)
    monkeypatch.setitem(app.conf, "beat_schedule", {})
    make_schedule("database", 0.02)
    return apps.get_model("django_celery_beat", "PeriodicTask").objects.get(name=ENTRY)


@with_database_scheduler
def test_what_was_sent_once_and_never_again_stays_so_with_the_next_beat(periodic_task):
    type(periodic_task).objects.update(one_off=True)
    first, second = make_scheduler("database"), make_scheduler("database")
    first.sync = lambda: None
    tick_until_sent(first, 1)
    periodic_task.refresh_from_db()
    assert periodic_task.total_run_count == 0
    free_the_lease()

    wait_until(lambda: second.tick() and not type(periodic_task).objects.get().enabled)

    assert not hasattr(second, "sent")


@with_database_scheduler
def test_a_beat_writes_no_last_run_over_a_later_one(periodic_task):
    first, second = make_scheduler("database"), make_scheduler("database")
    tick_until_sent(first, 2)
    free_the_lease()
    tick_until_sent(second, 1)
    second.sync()

    first.sync()

    periodic_task.refresh_from_db()
    assert periodic_task.total_run_count == second.sent[-1] == 3


@with_database_scheduler
def test_a_row_that_was_disabled_since_counts_from_then_on(periodic_task):
    scheduler = make_scheduler("database")
    tick_until_sent(scheduler, 2)
    type(periodic_task).objects.get().save()
    type(periodic_task).objects.update(last_run_at=None)

    scheduler.sync()

    periodic_task.refresh_from_db()
    assert periodic_task.last_run_at is None


@with_database_scheduler
def test_a_schedule_that_changes_at_start_is_sent_once(periodic_task, monkeypatch):
    type(periodic_task).objects.update(last_run_at=database_now("default") - timedelta(hours=2))
    interval = periodic_task.interval
    interval.every, interval.period = 1, "hours"
    interval.save()
    scheduler = make_scheduler("database")
    tick_until_sent(scheduler, 1)

    # As django-celery-beat does when it has read the schedule anew.
    scheduler._heap_invalidated = True
    scheduler.tick()

    assert scheduler.sent == [1]


@with_database_scheduler
def test_last_runs_that_can_not_be_written_are_written_later(periodic_task, monkeypatch, caplog):
    scheduler = make_scheduler("database")
    tick_until_sent(scheduler, 2)

    def be_away(*args, **kwargs):
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(beat_database(), "_save", be_away)
        scheduler.sync()
    assert "could not be written to periodic tasks: away" in caplog.text
    assert scheduler.bookings

    scheduler.sync()

    assert not scheduler.bookings
    periodic_task.refresh_from_db()
    assert periodic_task.total_run_count == 2


def beat_database():
    """Return the module that is imported only with django-celery-beat."""
    return sys.modules[beat.LockedDatabaseScheduler.__module__]


@pytest.fixture
def rarely(transactional_db, monkeypatch) -> None:
    """A schedule that is never due while a test lasts."""
    monkeypatch.setitem(app.conf, "result_expires", None)
    make_schedule("persistent", 3600, monkeypatch)


def test_an_interval_that_never_ended_yet_goes_on_with_the_next_beat(rarely):
    first, second = make_scheduler(), make_scheduler()
    first.tick()
    begun_at = first.schedule[ENTRY].last_run_at
    free_the_lease()

    second.tick()

    assert second.schedule[ENTRY].last_run_at == begun_at


def test_last_runs_of_what_left_the_schedule_are_kept_for_a_while(rarely, monkeypatch):
    data = {
        "entries": {
            "newer release": [database_now("default").isoformat(), 1],
            "long ago": ["2001-01-01T00:00:00+00:00", 1],
        }
    }
    scheduler = make_scheduler()
    Lease.objects.filter(name=LEASE).update(data=data)

    scheduler.tick()

    assert set(Lease.objects.get(name=LEASE).data["entries"]) == {"newer release", ENTRY}


def test_the_banner_names_the_lease_and_asks_no_database():
    scheduler = LockedPersistentScheduler(app=app, lazy=True)

    assert LEASE in scheduler.info


def test_a_wrong_schedule_is_an_error_at_start(transactional_db, monkeypatch):
    monkeypatch.setitem(app.conf, "beat_schedule", {ENTRY: {"tusk": TASK, "schedule": 1}})

    with pytest.raises(TypeError, match="tusk"):
        make_scheduler()


def test_a_lease_that_lasts_no_time_is_an_error_at_start(configure):
    configure(BEAT_LEASE_SECONDS=0)

    with pytest.raises(BeatMisconfigured, match="BEAT_LEASE_SECONDS"):
        make_scheduler()


def test_a_missing_table_is_an_error_at_start(transactional_db):
    with connection.schema_editor() as editor:
        editor.delete_model(Lease)
    try:
        with pytest.raises(BeatMisconfigured, match=r"manage.py migrate"):
            make_scheduler()
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(Lease)


def test_a_database_that_is_no_database_is_an_error_at_start(monkeypatch):
    monkeypatch.setattr(leadership, "CLOCKS", {})

    with pytest.raises(BeatMisconfigured, match="should be PostgreSQL"):
        make_scheduler()


@pytest.mark.skipif(connection.vendor != "sqlite", reason="only SQLite can be in memory")
def test_a_database_in_memory_is_an_error_at_start(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "NAME", ":memory:")

    with pytest.raises(BeatMisconfigured, match="in memory"):
        make_scheduler()


def test_the_entry_points_name_schedulers():
    setup = ConfigParser()
    setup.read(Path(__file__).parent.parent / "setup.cfg")
    lines = setup["options.entry_points"]["celery.beat_schedulers"].strip().splitlines()
    names = dict(line.split(" = ") for line in lines)

    assert symbol_by_name(names["celery-admin-runner"]) is LockedPersistentScheduler
    database = names["celery-admin-runner-database"]
    if apps.is_installed("django_celery_beat"):
        assert symbol_by_name(database).__name__ == "LockedDatabaseScheduler"
    else:
        with pytest.raises(BeatMisconfigured, match=r"celery-admin-runner\[beat\]"):
            symbol_by_name(database)
    with pytest.raises(AttributeError, match="LockedMoon"):
        symbol_by_name("celery_admin_runner.beat:LockedMoon")


class Beat:
    """A beat that is a process of its own."""

    def __init__(self, kind: str, name: str) -> None:
        self.log = Path(settings.FOLDER) / f"beat-{kind}-{name}.log"
        scheduler = f"tests.beat_schedulers:Numbered{kind.capitalize()}Scheduler"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tests.beat_app", "beat"),
                    *("--scheduler", scheduler, "--pidfile=", "-l", "INFO"),
                ],
                env={
                    **os.environ,
                    "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
                    "TEST_BEAT": kind,
                    "TEST_BEAT_LEASE_SECONDS": str(LEASE_SECONDS),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def has_said(self, text: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        return text in self.log.read_text()

    def is_up(self) -> bool:
        return self.has_said("Has the lease") or self.has_said("standing by")

    def freeze(self) -> None:
        """Stop the process, but not while it holds SQLite's file, which nobody else could use."""
        while True:
            os.kill(self.pid, signal.SIGSTOP)
            if connection.vendor != "sqlite" or can_write_soon():
                return
            os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)


def can_write_soon() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 1000")
        try:
            Lease.objects.filter(name="nothing").update(holder=None)
        except OperationalError:
            return False
        finally:
            cursor.execute("PRAGMA busy_timeout = 20000")
    return True


@contextmanager
def two_beats(kind: str) -> Iterator[tuple[Beat, Beat]]:
    """Start two beats at once; give the one that leads, and the one that stands by."""
    beats = [Beat(kind, name) for name in ("one", "two")]
    try:
        wait_until(lambda: all(each.is_up() for each in beats), seconds=60, why="no beat is up")
        leader, standby = sorted(beats, key=lambda each: each.has_said("standing by"))
        yield leader, standby
    finally:
        for each in beats:
            each.end()


class Inbox:
    """What beats have sent through the broker: who sent it, and which run it was."""

    def __init__(self, queue) -> None:
        self.queue = queue
        self.sent: list[tuple[int, int]] = []

    def of(self, sender: Beat) -> list[int]:
        """Return the numbers of the runs that came from this beat."""
        while True:
            try:
                message = self.queue.get(block=False)
            except Empty:
                break
            self.sent.append(tuple(message.payload[0]))
            message.ack()
        return [number for pid, number in self.sent if pid == sender.pid]

    def wait_for(self, sender: Beat, number: int) -> None:
        """Wait until this beat has sent so many more."""
        before = len(self.of(sender))
        wait_until(lambda: len(self.of(sender)) >= before + number, seconds=60)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with app.connection_for_read() as broker:
        queue = broker.SimpleQueue(QUEUE)
        yield Inbox(queue)
        queue.consumer.channel.queue_delete(QUEUE)
        queue.close()


@pytest.mark.parametrize("kind", KINDS)
def test_two_beats_send_as_one_whatever_becomes_of_the_leader(kind, transactional_db, inbox):
    if kind == "database":
        make_schedule(kind, EVERY)
    with two_beats(kind) as (first, second):
        inbox.wait_for(first, 3)
        assert inbox.of(second) == []

        first.freeze()
        inbox.wait_for(second, 3)
        os.kill(first.pid, signal.SIGCONT)
        wait_until(lambda: first.has_said("stands by"), seconds=60)
        inbox.wait_for(second, 2)
        # All that the first sent, it sent before the second took over.
        assert max(inbox.of(first)) < min(inbox.of(second))

        os.kill(second.pid, signal.SIGKILL)
        inbox.wait_for(first, 3)
        assert Lease.objects.get(name=LEASE).counter == 3

        first.process.terminate()
        assert first.process.wait(60) == 0
        assert Lease.objects.get(name=LEASE).holder is None

    inbox.of(first)
    runs = sorted(number for _, number in inbox.sent)
    assert len(set(runs)) == len(runs)
    # Each of the two that were stopped on their way may have missed one run.
    assert len(set(range(runs[0], runs[-1] + 1)) - set(runs)) <= 2


def test_a_beat_that_can_have_no_lease_does_not_start(transactional_db):
    process = subprocess.run(
        [
            *(sys.executable, "-m", "celery", "-A", "tests.beat_app", "beat", "--pidfile="),
            *("--scheduler", "celery_admin_runner.beat:LockedPersistentScheduler"),
        ],
        env={**os.environ, "DATABASE_URL": "sqlite://:memory:", "TEST_DATABASE_NAME": ":memory:"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert process.returncode != 0
    assert "BeatMisconfigured" in process.stderr
    assert "is in memory, where no other beat sees the lease" in process.stderr
