"""Send the task runs that are due, until told to stop."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from threading import Event
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from celery_admin_runner.dispatcher import Dispatched, Dispatcher
from celery_admin_runner.management.stopping import stopped_by_signals
from celery_admin_runner.recording import FAULTS


class Command(BaseCommand):
    """``manage.py dispatch_taskruns``."""

    help = (
        "Sends the scheduled task runs that are due, and those whose dependencies have "
        'succeeded. For DISPATCH = "command"; several at once are fine. Ends on SIGTERM or '
        "SIGINT with exit code 0, after it has finished the batch in hand. With --once: exit "
        "code 1 if a run could not be sent, or the broker or the database is away."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the options."""
        parser.add_argument("--once", action="store_true", help="Make one pass, and end.")
        parser.add_argument(
            "--interval",
            type=_seconds,
            default=1.0,
            metavar="SECONDS",
            help="How long to rest between two passes. Default: 1.",
        )

    def handle(self, *, once: bool, interval: float, verbosity: int, **options: Any) -> None:
        """Dispatch once, or until a signal comes."""
        stop = Event()
        with stopped_by_signals(stop):
            if not once:
                if verbosity:
                    text = f"Due runs are sent, every {interval:g} s, until told to stop."
                    self.stdout.write(text)
                    self.stdout.flush()
                Dispatcher().run(stop, interval)
                return
            try:
                dispatched = Dispatcher().dispatch(stop=stop)
            except FAULTS as error:
                raise CommandError(f"The database can't be asked: {error}") from error
        if verbosity:
            self.stdout.write(_summary(dispatched))
        if dispatched.broker_error:
            raise CommandError(f"The broker is away: {dispatched.broker_error}")
        if dispatched.failed:
            sys.exit(1)


def _summary(dispatched: Dispatched) -> str:
    """Tell what came of a pass."""
    text = f"{dispatched.sent:,} {'run' if dispatched.sent == 1 else 'runs'} sent"
    if dispatched.failed:
        text += f", {dispatched.failed:,} not: see their pages"
    if dispatched.given_back:
        text += f", {dispatched.given_back:,} kept until the broker is back"
    return f"{text}."


def _seconds(text: str) -> float:
    """Read a number of seconds; argparse shows the message of this error only."""
    try:
        seconds = float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no number of seconds.") from error
    if not 0.1 <= seconds <= 3600:
        raise ArgumentTypeError("Choose at least 0.1 and at most 3600 seconds.")
    return seconds
