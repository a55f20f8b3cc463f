"""What is told to workers, and what they answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.utils import timezone

from celery_admin_runner import control
from celery_admin_runner.control import Answer, Untold
from tests.brokers import NO_BROKER, broker_away
from tests.celery_app import app, filesystem_options
from tests.conftest import worker_name

SESSION = worker_name("session")
VERBS: list[Callable[[], object]] = [
    lambda: control.revoke("x"),
    lambda: control.terminate("x", signal="SIGTERM"),
    lambda: control.kill("x", worker="w"),
]
each_verb = pytest.mark.parametrize("verb", VERBS, ids=["revoke", "terminate", "kill"])


def test_a_worker_that_does_not_have_the_run_says_so(worker):
    answers = control.terminate("no-such-run", signal="SIGTERM", worker=SESSION)

    assert Answer(worker=SESSION, text="It does not have this run.", is_ok=False) in answers


def test_the_silence_of_the_worker_that_should_answer_is_an_answer(worker):
    answers = control.terminate("no-such-run", signal="SIGTERM", worker="gone@elsewhere")

    assert [answer.worker for answer in answers if "did not answer" in answer.text] == [
        "gone@elsewhere"
    ]


def test_that_nobody_answers_is_an_answer(tmp_path):
    with broker_away("filesystem://"):
        app.conf.broker_transport_options = filesystem_options(tmp_path)

        answers = control.terminate("no-such-run", signal="SIGTERM")

    assert answers == [Answer(worker="", text="No worker answered.", is_ok=False)]


@each_verb
@pytest.mark.parametrize("url", [NO_BROKER, "amqp://guest:hush@127.0.0.1:1//", "nosuch://:hush@x"])
def test_a_broker_that_is_away_is_told_soon_and_without_its_password(verb, url):
    begin = timezone.now()

    with broker_away(url), pytest.raises(Untold) as caught:
        verb()

    assert timezone.now() - begin < timedelta(seconds=15)
    answer = caught.value.answer
    assert (answer.worker, answer.is_ok) == ("", False)
    assert answer.text.startswith("The workers could not be told: ")
    assert "hush" not in answer.text


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_never_answers_is_given_up_within_five_seconds(scheme):
    begin = timezone.now()

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        broker_away(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}//"),
        ThreadPoolExecutor(len(VERBS)) as together,
    ):
        errors = [called.exception() for called in [together.submit(verb) for verb in VERBS]]

    assert [type(error) for error in errors] == [Untold] * len(VERBS)
    assert timezone.now() - begin < timedelta(seconds=15)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ({"ok": "terminate: x"}, "It has sent the signal"),
        ({"ok": "terminate: tasks unknown"}, "It does not have this run."),
        ({"error": "NotImplementedError(\"<class 'x.TaskPool'>\")"}, "Its pool can't stop a run"),
        ({"error": "KeyError('revoke')"}, "It can't: KeyError('revoke')"),
        ("what\x00", "It can't: 'what"),
        ({}, "It can't: {}"),
    ],
)
def test_what_a_worker_replies_is_told_in_words(reply, text):
    answer = control._answer("w", reply)

    assert answer.text.startswith(text)
    assert answer.is_ok is text.startswith("It has sent")
