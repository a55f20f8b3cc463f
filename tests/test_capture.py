"""What is caught, and what is left alone."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import copy_context
from copy import copy
from threading import Thread

import pytest

from celery_admin_runner import capture
from celery_admin_runner.capture import listen


class Heard(list):
    """Listens, and remembers."""

    def add(self, stream, text):
        self.append((stream, text))


@contextmanager
def hearing():
    """Listen in this context, and put everything back in the end.

    No fixture: pytest changes the standard streams between fixtures and tests.
    """
    factory, heard = logging.getLogRecordFactory(), Heard()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        capture.install()
        listen(heard)
        try:
            yield heard
        finally:
            listen(None)
            logging.setLogRecordFactory(factory)


def test_what_is_printed_is_heard_and_goes_where_it_went():
    with hearing() as heard:
        sys.stdout.write("out")
        sys.stderr.writelines(["e", "rr"])

        assert heard == [("stdout", "out"), ("stderr", "e"), ("stderr", "rr")]
        assert (sys.stdout.getvalue(), sys.stderr.getvalue()) == ("out", "err")


def test_a_stream_can_be_copied():
    with hearing() as heard:
        copy(sys.stdout).write("out")
        printed = sys.stdout.getvalue()

    assert (printed, heard) == ("out", [("stdout", "out")])


def test_nobody_hears_what_another_context_prints():
    with hearing() as heard:
        thread = Thread(target=lambda: sys.stdout.write("elsewhere"))
        thread.start()
        thread.join()

        assert heard == []
        assert sys.stdout.getvalue() == "elsewhere"


def test_a_copy_of_the_context_is_heard_too():
    with hearing() as heard:
        thread = Thread(target=copy_context().run, args=(sys.stdout.write, "from a thread"))
        thread.start()
        thread.join()

        assert heard == [("stdout", "from a thread")]


def test_it_is_installed_once():
    with hearing():
        streams, factory = (sys.stdout, sys.stderr), logging.getLogRecordFactory()

        capture.install()

        assert ((sys.stdout, sys.stderr), logging.getLogRecordFactory()) == (streams, factory)


@pytest.mark.parametrize("name", ["shop.tasks", "celery.task", "celeryfish", "django.request"])
def test_a_logger_of_the_project_is_heard(name):
    with hearing() as heard:
        logging.getLogger(name).warning("take %s", "care")

        assert heard == [("log", f"WARNING {name}: take care\n")]


@pytest.mark.parametrize(
    "name", ["celery.redirected", "celery.app.trace", "celery_admin_runner", "kombu"]
)
def test_a_logger_of_celery_or_ours_is_not_heard(name):
    with hearing() as heard:
        logging.getLogger(name).warning("internal")

        assert heard == []


def test_a_record_below_the_level_of_its_logger_is_not_heard():
    with hearing() as heard:
        logger = logging.getLogger("tests.strict")
        logger.setLevel(logging.ERROR)

        logger.warning("hush")

        assert heard == []


def test_arguments_that_do_not_fit_their_message_break_no_task(monkeypatch):
    with hearing() as heard:
        monkeypatch.setattr(logging, "raiseExceptions", False)

        logging.getLogger("tests.wrong").warning("%d", "text")

        assert heard == []


def test_a_command_that_closes_what_it_writes_to_leaves_the_standard_output_open():
    original = io.StringIO()

    with capture.Tee("stdout", original) as out:
        out.write("text")

    assert original.getvalue() == "text"


def test_a_copied_record_is_not_heard_again():
    with hearing() as heard:
        logging.makeLogRecord({"name": "copied", "msg": "text"})

        assert heard == []


def test_a_record_is_left_as_it_was_for_other_formatters(caplog):
    with hearing() as heard:
        try:
            raise ValueError("caught")
        except ValueError:
            record = logging.getLogger("tests").makeRecord(
                "tests", logging.ERROR, "f", 1, "broken", (), sys.exc_info()
            )

        assert heard[0][1].startswith("ERROR tests: broken\nTraceback")
        assert record.exc_text is None


# Python 3.12 warns of a fork beside threads.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_not_heard():
    with hearing():
        read, write = os.pipe()
        pid = os.fork()
        if not pid:  # pragma: no cover
            os.write(write, repr(capture.listener()).encode())
            os._exit(0)
        os.waitpid(pid, 0)

        assert os.read(read, 100) == b"None"
        os.close(read)
        os.close(write)
