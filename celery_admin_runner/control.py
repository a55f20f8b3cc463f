"""Tell the workers to drop a run, or to kill it, and hear what they answer.

By a connection of its own that waits for nothing long. Celery 5.7's ``app.control`` sends by
its own pool, which tries for ever to reach a broker that is away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _
from kombu.connection import Connection
from kombu.messaging import Producer
from kombu.pidbox import Mailbox

from celery_admin_runner.broker import (
    UNUSABLE_ADDRESS,
    bounded_connection,
    broker_errors,
    describe,
    describe_address,
)
from celery_admin_runner.encoding import storable_text
from celery_admin_runner.registry import celery_app

#: The name of our own command (``killing``).
KILL_COMMAND = "celery_admin_runner_kill"
#: How long a worker's answer is waited for after the one before it, in seconds.
ANSWERS_WITHIN = 1.5


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker answered."""

    #: The worker's name; "" if nobody answered, or nobody could be asked.
    worker: str
    text: str
    #: Whether it did as it was told.
    is_ok: bool


class Untold(Exception):
    """The workers could not be told; the message says why."""

    def __init__(self, error: str) -> None:
        super().__init__(_("The workers could not be told: %(error)s") % {"error": error})

    @property
    def answer(self) -> Answer:
        """The same as the answer of nobody."""
        return Answer(worker="", text=str(self), is_ok=False)


class _Enough(Exception):
    """What was waited for has come."""


def revoke(task_id: str) -> None:
    """Tell all workers not to begin a run; raises Untold.

    Celery 5.7: they keep the id in memory, until they end.
    """
    with _mailbox() as mailbox:
        mailbox.abcast("revoke", {"task_id": task_id})


def terminate(task_id: str, *, signal: str, worker: str = "") -> list[Answer]:
    """Tell all workers to end a run by a signal to its process; raises Untold.

    Returns what they answer, who does it first. ``worker`` is the one that is said to run
    it: no other is waited for when it does as it is told, and if it is silent that is an
    answer too.
    """
    return _command(
        "revoke", {"task_id": task_id, "terminate": True, "signal": signal}, worker=worker
    )


def terminate_all(task_ids: Collection[str], *, workers: Collection[str]) -> list[Answer]:
    """Tell all workers in one message to end these runs by SIGTERM; raises Untold.

    ``workers`` are those that are said to run them: that one is silent is an answer too.
    """
    arguments = {"task_id": list(task_ids), "terminate": True, "signal": "SIGTERM"}
    answers = _command("revoke", arguments, worker="")
    silent = set(workers) - {answer.worker for answer in answers}
    return [*answers, *map(_silence, sorted(silent))]


def kill(task_id: str, *, worker: str) -> list[Answer]:
    """Have the process of a run killed by the worker that is said to run it; raises Untold.

    By Celery's own command, and if that worker has forgotten the run, as Celery 5.7 does after
    SIGTERM, by ours.
    """
    answers = terminate(task_id, signal="SIGKILL", worker=worker)
    if any(answer.is_ok for answer in answers):
        return answers
    return _command(KILL_COMMAND, {"task_id": task_id}, worker=worker, only=[worker])


def _command(
    name: str, arguments: Mapping[str, Any], *, worker: str, only: list[str] | None = None
) -> list[Answer]:
    """Broadcast a command, to all workers or only some, and return what they answer."""
    replies: dict[str, Any] = {}

    def listen(reply: Mapping[str, Any]) -> None:
        replies.update(reply)
        if worker in reply and _answer(worker, reply[worker]).is_ok:
            raise _Enough

    with _mailbox() as mailbox, suppress(_Enough):
        mailbox.call(only, name, dict(arguments), timeout=ANSWERS_WITHIN, callback=listen)
    answers = [_answer(who, reply) for who, reply in replies.items()]
    if worker and worker not in replies:
        answers.append(_silence(worker))
    answers.sort(key=lambda answer: (not answer.is_ok, answer.worker))
    return answers or [Answer(worker="", text=_("No worker answered."), is_ok=False)]


def _silence(worker: str) -> Answer:
    text = _("This worker did not answer: it is gone, or too busy to read the command.")
    return Answer(worker=worker, text=text, is_ok=False)


def _answer(worker: str, reply: Any) -> Answer:
    """Return in our words what a worker replied.

    Celery 5.7: ``{"ok": "terminate: <id>"}``, ``{"ok": "terminate: tasks unknown"}``, or
    ``{"error": "NotImplementedError(...)"}`` from a pool that can't.
    """
    known = reply if isinstance(reply, Mapping) else {}
    said, error = str(known.get("ok", "")), str(known.get("error", ""))
    if "NotImplementedError" in error:
        text = _("Its pool can't stop a run: this one goes on unless its task looks for it.")
    elif said.endswith("tasks unknown"):
        text = _("It does not have this run.")
    elif said:
        return Answer(
            worker=worker, text=_("It has sent the signal to the process of the run."), is_ok=True
        )
    else:
        text = _("It can't: %(error)s") % {"error": storable_text(error or repr(reply))}
    return Answer(worker=worker, text=text, is_ok=False)


@contextmanager
def _mailbox() -> Iterator[Mailbox]:
    """Open the mailbox of Celery's remote control on a bounded connection; raises Untold."""
    app = celery_app()
    try:
        connection = bounded_connection(app)
    except UNUSABLE_ADDRESS as error:
        raise Untold(describe_address(error)) from error
    errors = broker_errors(connection)
    try:
        with connection:
            mailbox: Mailbox = app.control.mailbox(connection)
            mailbox.producer_pool = _Producers(connection)
            yield mailbox
    except errors as error:
        raise Untold(describe(error, connection)) from error


class _OneTry(Producer):
    """Sends in one try: kombu 5.7's mailbox asks for as many as it takes."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        """Send a message, or raise what the broker raises."""
        return super().publish(*args, **{**kwargs, "retry": False})  # type: ignore[no-untyped-call]


class _Producers:
    """In place of a pool: a producer on the connection that is there."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @contextmanager
    def acquire(self) -> Iterator[Producer]:
        """Give a producer."""
        yield _OneTry(self.connection.default_channel, auto_declare=False)  # type: ignore[no-untyped-call]
