"""What is tried with the site's processes, and what is counted at the end."""

import contextlib
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from io import StringIO
from typing import Any

from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.db.models import Q, QuerySet
from django.utils import timezone

from celery_admin_runner.models import Lease, RecordingFault, TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from scale.celery import app
from scale.models import Execution
from scale.people import BASE, Ears, Operator, answers
from scale.processes import Proxy, Site, Wrong, free_ports, until

#: A worker tells RabbitMQ within this time that it has begun a task, or, with the pool "solo",
#: that it is done with it: Celery 5.7 tells when it has time, and not while it is busy.
HELD = timedelta(seconds=5)
PERMISSIONS = [
    *("view_celerytask", "run_celerytask", "view_taskrunrecord"),
    *("cancel_taskrunrecord", "retry_taskrunrecord", "export_taskrunrecord"),
]
WORKERS = {
    "worker prefork": ["--pool", "prefork", "--concurrency", "2", "--queues", "{}-fast,{}-slow"],
    "worker threads": ["--pool", "threads", "--concurrency", "3", "--queues", "{}-fast"],
    "worker solo": ["--pool", "solo", "--queues", "{}-slow"],
}


class Trial:
    """What is tried, in order."""

    def __init__(
        self,
        site: Site,
        ports: tuple[int, int],
        *,
        broker: Proxy,
        database: Proxy,
        has_sockets: bool,
    ) -> None:
        self.site = site
        self.database = database
        self.has_sockets = has_sockets
        self.ports = ports
        self.broker = broker
        #: The task ids that were promised to somebody, by status.
        self.promised: dict[str, int] = {}
        self._turns = itertools.count()
        #: How often a web process gave no answer.
        self.unanswered = 0
        #: What was killed while it ran; and when workers lost the broker, or the broker them.
        self.killed: set[str] = set()
        self.losses: list[tuple[datetime, datetime]] = []

    # Helpers

    def start(self, task: str, *args: Any, **options: Any) -> str:
        """Run a task at one of the web processes; return its id, "" if that was refused."""
        turn = next(self._turns)
        for port in (self.ports[turn % 2], self.ports[(turn + 1) % 2]):
            try:
                status, task_id = self.operator.run(port, task, *args, **options)
            except OSError:
                # As a load balancer does; but what became of it there, nobody knows.
                self.unanswered += 1
                continue
            if task_id:
                self.promised[task_id] = status
            return task_id
        raise Wrong("No web process answers")

    def state_of(self, task_id: str) -> str:
        """Return the state of a run."""
        return str(TaskRunRecord.objects.values_list("state", flat=True).get(task_id=task_id))

    def pk_of(self, task_id: str) -> int:
        """Return the primary key of a run."""
        return int(TaskRunRecord.objects.values_list("pk", flat=True).get(task_id=task_id))

    def unfinished(self) -> "QuerySet[TaskRunRecord]":
        """Return what is to come still, but for what beat sends."""
        return TaskRunRecord.objects.unfinished().exclude(task_name="scale.tasks.tick")

    def wait_for_end(self, runs: "QuerySet[TaskRunRecord] | None" = None) -> None:
        """Return when these runs have ended, by default all."""
        rows = self.unfinished() if runs is None else runs
        try:
            until("the end of all runs", lambda: not rows.exists())
        except Wrong as error:
            fields = ("task_name", "state", "worker", "publish_error", "claimed_at", "due_at")
            left = "\n".join(map(str, rows.values_list("task_id", *fields)))
            raise Wrong(f"{error}, but for these:\n{left}\nNow it is {timezone.now()}.") from error

    # What is tried

    def work(self) -> None:
        """Do all that an operator can do, at both web processes at once."""
        self.operator = Operator(self.ports[0], "operator")
        own = Operator(self.ports[1], "customer")
        ears = [own.listen(port) for port in self.ports] if self.has_sockets else []
        with ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(self.start, "count", number) for number in range(60)]
            futures += [
                pool.submit(self.start, "count", number, countdown=1 + number % 3)
                for number in range(30)
            ]
            futures += [pool.submit(self.start, "take_time", 1.0) for _ in range(4)]
            futures += [pool.submit(self.start, "succeed_later", number) for number in range(4)]
            futures += [pool.submit(self.start, "spread") for _ in range(3)]
            same = [
                pool.submit(self.operator.run, self.ports[number % 2], "only_one", "key", 3.0)
                for number in range(8)
            ]
            for future in futures:
                future.result()
            answers = Counter(future.result()[0] for future in same)
        if answers[201] != 1 or answers[400] != 7:
            raise Wrong(f"A unique task was answered by {answers}")
        first = self.start("take_time", 1.0)
        second = self.start("count", 1, depends_on=[first])
        self.start("count", 2, depends_on=[first, second], countdown=1)
        self._cancel()
        self._use_pages()
        started = {self._of(own, web): web for web in (0, 1)}
        self.wait_for_end()
        for task_id in started:
            for each in ears:
                until("the websocket to tell of the end", partial(self._heard, each, task_id))
        self._export()

    def _of(self, user: Operator, web: int) -> str:
        status, task_id = user.run(self.ports[web], "take_time", 0.5)
        self.promised[task_id] = status
        return task_id

    def _heard(self, ears: Ears, task_id: str) -> bool:
        return ears.heard.get(task_id, ("", 0))[0] == "SUCCESS"

    def _cancel(self) -> None:
        """Cancel one that is scheduled and one that waits in a queue, twice each, at both."""
        later = self.start("count", 0, countdown=3600)
        queued = [self.start("take_time", 0.5) for _ in range(6)][-1]
        for task_id in (later, queued):
            pk = self.pk_of(task_id)
            path = f"{BASE}/taskrunrecord/{pk}/cancel/"
            with ThreadPoolExecutor(2) as pool:
                both = [pool.submit(self.operator.ask, port, path, {}) for port in self.ports]
            # The page of one that has begun meanwhile asks how it is to be stopped.
            if any(each.result()[0] not in {200, 302} for each in both):
                raise Wrong(f"To cancel was answered by {[each.result() for each in both]}")
        if self.state_of(later) != "REVOKED":
            raise Wrong(f"The scheduled run was cancelled, and is {self.state_of(later)}")

    def _use_pages(self) -> None:
        """Run a task by its form, and again by the button of its run."""
        form = {"mode": "typed", "args-number": "7"}
        path = f"{BASE}/celerytask/scale.tasks.count/run/"
        status, text, location = self.operator.ask(self.ports[1], path, form)
        found = re.search(r"taskrunrecord/(\d+)/", location)
        if status != 302 or not found:
            raise Wrong(f"The form was answered by {status}:\n{text}")
        pk = int(found[1])
        until(
            "the run of the form to succeed",
            lambda: TaskRunRecord.objects.filter(pk=pk, state="SUCCESS").exists(),
        )
        self.operator.press(self.ports[0], pk, "run-again")
        until(
            "the run that repeats it",
            lambda: TaskRunRecord.objects.filter(retry_of=pk, state="SUCCESS").exists(),
        )

    def _export(self) -> None:
        """Export the journal at both, and find each promised run in it once."""
        form = {"format": "0", "resource": "0", "taskrunrecordresource_task_id": "on"}
        for port in self.ports:
            status, text, _ = self.operator.ask(port, f"{BASE}/taskrunrecord/export/", form)
            missing = [task_id for task_id in self.promised if text.count(task_id) != 1]
            if status != 200 or missing:
                raise Wrong(f"The export was answered by {status}, without {missing}")

    def kill_a_web_process(self) -> None:
        """Kill one while it sends; the other goes on."""
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(self.start, "count", number) for number in range(80)]
            until("some runs", lambda: sum(each.done() for each in futures) > 15)
            self.site.kill("web 1")
            for future in futures:
                future.result()
        self.site.start("web 1")
        until("the first web process", lambda: answers(self.ports[0]))

    def kill_a_worker(self) -> None:
        """Kill one while it runs, with all its processes; others get what it had not begun."""
        # The solo worker holds two of them at most.
        running = [self.start("take_time", 4.0) for _ in range(3)]
        begun = TaskRunRecord.objects.filter(state="STARTED", worker__startswith="prefork")
        until(
            "a long run", lambda: begun.filter(task_id__in=running, output__isnull=False).exists()
        )
        for number in range(6):
            self.start("take_time", 0.5 + number / 10)
        self._kill_worker("prefork")
        self.site.start("worker prefork")

    def _kill_worker(self, name: str) -> None:
        self.site.kill(f"worker {name}")
        killed_at = timezone.now()
        self.losses.append((killed_at - HELD, killed_at))
        begun = TaskRunRecord.objects.filter(state="STARTED", worker__startswith=name)
        self.killed |= set(begun.values_list("task_id", flat=True))

    def kill_the_dispatchers(self) -> None:
        """Kill two of them while many runs are due."""
        runs = TaskRunner(User.objects.get(username="operator"))
        for number in range(300):
            run = runs.run("scale.tasks.count", [number], countdown=3)
            self.promised[run.task_id] = 201
        until(
            "dispatchers to send",
            lambda: TaskRunRecord.objects.filter(
                pk__gt=run.pk - 300, published_at__isnull=False
            ).exists(),
        )
        self.site.kill("dispatcher")
        self._kill_worker("solo")
        for name in ("dispatcher", "worker solo"):
            self.site.start(name)

    def kill_the_beat(self) -> None:
        """Kill the one that leads; the other takes over."""
        for name in ("beat 1", "beat 2"):
            if "Has the lease" in self.site.log(name).read_text():
                break
        else:
            raise Wrong("No beat leads")
        self.site.kill(name)
        other = "beat 2" if name == "beat 1" else "beat 1"
        until("the other beat", lambda: "Has the lease" in self.site.log(other).read_text())
        self.site.start(name)
        until("the first beat", lambda: "standing by" in self.site.log(name).read_text())

    def cut_the_database(self) -> None:
        """Let it be away for a moment: what runs goes on, and its end is told later.

        Of the tasks themselves those fail that ask the database meanwhile.
        """
        running = [self.start("take_time", 4.0) for _ in range(2)]
        due = [self.start("count", number, countdown=4) for number in range(10)]
        begun = TaskRunRecord.objects.filter(task_id__in=running, started_at__isnull=False)
        until("two runs", lambda: begun.count() == 2)
        if RecordingFault.objects.exists():
            raise Wrong(f"Not recorded: {list(RecordingFault.objects.values())}")
        self.database.cut()
        time.sleep(2)
        self.database.mend()
        self.wait_for_end(self.unfinished().filter(task_id__in=running + due))

    def cut_the_broker(self) -> None:
        """Let RabbitMQ be away for a while: nothing is lost, and staff are told."""
        due = [self.start("count", number, countdown=4) for number in range(20)]
        cut_at = timezone.now()
        self.broker.cut()
        refused = [self.start("count", number) for number in range(4)]
        if bad := [each for each in refused if self.promised.get(each) != 503]:
            raise Wrong(f"Without a broker these were answered otherwise than by 503: {bad}")
        time.sleep(5)
        if any(self.state_of(each) != "SCHEDULED" for each in due):
            raise Wrong("Without a broker a run that is due is no longer scheduled")
        self.broker.mend()
        self.losses.append((cut_at - HELD, timezone.now()))
        for each in refused:
            self._send_again(self.pk_of(each))

    def _send_again(self, pk: int) -> None:
        """Press "Send again", and say yes if the page asks whether that is meant."""
        path = f"{BASE}/taskrunrecord/{pk}/send-again/"
        status, text, _ = self.operator.ask(self.ports[0], path, {})
        if status == 200 and (digest := re.search(r'name="_confirmed" value="(\w+)"', text)):
            status, text, _ = self.operator.ask(self.ports[1], path, {"_confirmed": digest[1]})
        if status != 302:
            raise Wrong(f"To send run {pk} again was answered by {status}:\n{text}")

    def settle(self) -> None:
        """Do what operators do after crashes, and let all end."""
        in_doubt = TaskRunRecord.objects.filter(
            Q(state="UNSENT") | Q(state="SCHEDULED", claimed_at__isnull=False)
        )
        others = self.unfinished().exclude(pk__in=in_doubt).exclude(task_id__in=self.killed)
        self.wait_for_end(others)
        left = list(in_doubt)
        self.in_doubt = Counter(run.state for run in left)
        ran = Execution.objects.filter(task_id__in=[run.task_id for run in left]).count()
        if ran:
            raise Wrong(f"{ran} runs that are in doubt did run")
        # An hour later: nobody has them in hand any more.
        past = timezone.now() - timedelta(hours=1)
        in_doubt.filter(claimed_at__isnull=False).update(claimed_at=past)
        in_doubt.filter(state="SCHEDULED").update(due_at=past)
        for run in left:
            if run.state == "UNSENT":
                self._send_again(run.pk)
        print(manage("find_stale_scheduled_taskruns", "--send-again", "--yes"))
        lost = ["--state", "STARTED", "--older-than", "5s", "--mark-lost"]
        print(manage("find_stale_taskruns", *lost))
        self.wait_for_end()

    def check(self) -> None:
        """Compare the journal with what was really done."""
        runs = {run.task_id: run for run in TaskRunRecord.objects.all()}
        done: dict[str, list[Execution]] = {}
        for execution in Execution.objects.order_by("pk"):
            done.setdefault(execution.task_id, []).append(execution)
        again = 0
        wrong = [f"{each} was promised, and is not there" for each in self.promised.keys() - runs]
        wrong += [f"{each} ran, and is not there" for each in done.keys() - runs]
        for task_id, run in runs.items():
            attempts = [each.retries for each in done.get(task_id, [])]
            if run.state == "SUCCESS" and self._may_be_delivered_again(task_id, done):
                again += len(attempts) - run.retries - 1
                is_right = sorted(set(attempts)) == list(range(run.retries + 1))
            elif run.state == "SUCCESS":
                is_right = attempts == list(range(run.retries + 1)) and done[task_id][-1].over_at
            elif run.state == "LOST":
                is_right = task_id in self.killed and attempts == [0]
            elif run.state == "FAILURE":
                is_right = "OperationalError" in run.exception and set(attempts) <= {0}
            elif run.state == "REVOKED":
                is_right = attempts == []
            else:
                is_right = run.task_name == "scale.tasks.tick" and len(attempts) < 2
            if not is_right:
                wrong.append(f"{run.task_name} {task_id} is {run.state}, and ran {attempts}")
        if wrong:
            raise Wrong("\n".join(wrong))
        self._check_leases()
        states = Counter(run.state for run in runs.values())
        print(f"{len(runs)} runs: {dict(states)}; {Execution.objects.count()} executions.")
        print(f"Done again because RabbitMQ had heard nothing of it: {again}")
        faults = sum(RecordingFault.objects.values_list("count", flat=True))
        print(f"Recorded late, or not at all, while the database was away: {faults} reports")
        print(f"In doubt after the crashes: {dict(self.in_doubt)}; unanswered: {self.unanswered}")

    def _may_be_delivered_again(self, task_id: str, done: dict[str, list[Any]]) -> bool:
        """Tell whether a worker held it, or was just done with it, when it lost the broker.

        What it has not told RabbitMQ of by then, that gives to another worker, or to the same.
        """
        return task_id in self.killed or any(
            each.begun_at < till and (each.over_at is None or each.over_at > since)
            for since, till in self.losses
            for each in done.get(task_id, ())[:1]
        )

    def _check_leases(self) -> None:
        """One process prunes; beat may miss what was booked when it was killed, and no more."""
        pruned = Lease.objects.get(name="prune on startup").counter
        if pruned != 1:
            raise Wrong(f"{pruned} processes pruned on startup")
        [lease] = Lease.objects.filter(name__startswith="beat")
        _moment, booked = lease.data["entries"]["Tick"]
        sent = TaskRunRecord.objects.filter(task_name="scale.tasks.tick").count()
        if not booked - 2 <= sent <= booked:
            raise Wrong(f"Beat booked {booked} ticks, and sent {sent}")


class Sessions(threading.Thread):
    """Watches how many sessions each process has at the database."""

    def __init__(self, name: str) -> None:
        super().__init__(daemon=True)
        self._name = name
        self.most = Counter[str]()
        self.now = Counter[str]()
        self.stopping = threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        sql = (
            "SELECT application_name, count(*) FROM pg_stat_activity "
            "WHERE application_name LIKE %s GROUP BY 1"
        )
        while connection.vendor == "postgresql" and not self.stopping.wait(0.2):
            with connection.cursor() as cursor:
                cursor.execute(sql, [f"{self._name} %"])
                rows = cursor.fetchall()
            self.now = Counter({name.removeprefix(f"{self._name} "): each for name, each in rows})
            self.most |= self.now
        connection.close()


def manage(*command: str) -> str:
    """Run a management command of ours, whatever its exit code; return what it wrote."""
    output = StringIO()
    with contextlib.suppress(SystemExit):
        call_command(*command, stdout=output, stderr=output)
    return output.getvalue()


@contextlib.contextmanager
def own_database(name: str) -> Iterator[None]:
    """Make a database, and drop it at the end."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    shared, connection.settings_dict["NAME"] = connection.settings_dict["NAME"], name
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = shared
        force = "WITH (FORCE)" if connection.vendor == "postgresql" else ""
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} {force}")


def forget_queues(name: str, address: str) -> None:
    """Remove what was made at the broker of this address."""
    with app.connection_for_write(url=address) as broker:
        for queue in (f"{name}-fast", f"{name}-slow"):
            broker.default_channel.queue_delete(queue)
            broker.default_channel.exchange_delete(queue)
        for exchange in ("control", "events"):
            broker.default_channel.exchange_delete(f"{name}-{exchange}")


def start_all(site: Site, name: str, server: str, ports: list[int]) -> None:
    """Start two web processes, three workers, two beats and a dispatcher."""
    for number, port in enumerate(ports, start=1):
        commands = {
            "daphne": [
                *("-m", "daphne", "-b", "127.0.0.1", "-p", str(port)),
                "scale.asgi:application",
            ],
            "gunicorn": [
                *("-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2"),
                *("--threads", "4", "scale.wsgi"),
            ],
        }
        site.start(f"web {number}", commands[server])
    celery = ["-m", "celery", "-A", "scale"]
    for worker, options in WORKERS.items():
        node = f"{worker.split()[1]}@scale"
        own = [option.replace("{}", name) for option in options]
        site.start(worker, [*celery, "worker", "-l", "INFO", "-n", node, *own])
    for number in (1, 2):
        beat = ["beat", "-l", "INFO", "--scheduler", "celery-admin-runner", "--max-interval", "1"]
        site.start(f"beat {number}", [*celery, *beat])
    site.start("dispatcher", ["-m", "django", "dispatch_taskruns"])


def is_ready(site: Site, worker: str) -> bool:
    """Tell whether a worker takes messages."""
    return " ready." in site.log(worker).read_text()


def try_all(site: Site, name: str, server: str, proxies: dict[str, Proxy]) -> None:
    """Start the site, try it, stop it."""
    begun_at = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun_at:5.1f} s  {text}", flush=True)

    manage("migrate", "--run-syncdb", "-v", "0")
    for login in ("operator", "customer"):
        user = User.objects.create_user(login, password=login, is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=PERMISSIONS))
    say("The database is there.")
    ports = free_ports(2)
    start_all(site, name, server, ports)
    sessions = Sessions(name)
    try:
        sessions.start()
        until("both web processes", lambda: all(map(answers, ports)))
        for worker in WORKERS:
            until(f"the {worker}", partial(is_ready, site, worker))
        say("All processes answer.")
        trial = Trial(site, (ports[0], ports[1]), **proxies, has_sockets=server == "daphne")
        trial.work()
        say("All that was asked for was done.")
        if errors := site.faults():
            raise Wrong(f"The logs tell of errors:\n{errors}")
        # What is closed after a request or a task is closed by now.
        time.sleep(1)
        memory, kept = site.memory_in_mb(), sessions.now
        for step in (
            *(trial.kill_a_web_process, trial.kill_a_worker, trial.kill_the_dispatchers),
            *(trial.kill_the_beat, trial.cut_the_database, trial.cut_the_broker, trial.settle),
        ):
            step()
            say(step.__name__)
        codes = site.stop()
        if len(codes) < 8 or any(codes.values()):
            raise Wrong(f"Not all processes have stopped in order: {codes}")
        say("Stopped.")
        trial.check()
        print("process             memory  sessions of the database: kept, and at most")
        for process, number in memory.items():
            print(f"{process:16} {number:6.0f} MB {kept[process]:26} {sessions.most[process]:12}")
    finally:
        sessions.stopping.set()
        sessions.join()
        site.kill_all()
