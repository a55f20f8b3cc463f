"""Delete task runs in whatever state they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from celery_admin_runner.clearing import (
    BATCH_SIZE,
    Clearance,
    Remainder,
    clear,
    clearance,
    count_by_state,
    remainder,
)
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.management.asking import is_confirmed
from celery_admin_runner.management.stopping import stopped_by_signals
from celery_admin_runner.states import KEPT, UNFINISHED, State

#: What is told of runs that have ended, or are to go with others.
WARNING = (
    "They go for good, with their output: nobody can look them up, run them again or export them "
    "afterwards, and a call that was ignored because of one of them runs."
)
#: What is told besides of runs that have not ended.
UNFINISHED_WARNING = (
    "{unfinished} of them: workers and broker are not told. What they have may still run, and is "
    "not recorded then: nobody sees its end or cancels it here, and the same call of a unique "
    "task may run beside it. Cancel first what is to stop."
)
#: And of those that nobody but the journal knows of.
KEPT_WARNING = "{kept} of them: nobody but the journal knows of these, so they never run."
WAITED_FOR = "{runs} because an unfinished run waits, or has waited, for them"
PROTECTED = "{runs} because rows of other apps protect them"
NOTHING = "Nothing was deleted."
BUSY = "{runs} because somebody else was writing them: say it again"


class Command(BaseCommand):
    """``manage.py clear_taskruns``."""

    help = (
        "Deletes task runs in whatever state they are, with their output, after a question. The "
        "tasks themselves are not told: cancel before what is to stop. Runs that an unfinished "
        "run waits for stay, unless that goes too. Exit code 0 if all went, 1 if some stay. To "
        "delete what is finished and old: prune_taskruns."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the options."""
        parser.add_argument(
            "--state",
            action="append",
            metavar="STATE",
            help=f"Only runs in this state: {', '.join(State)}. Can be repeated.",
        )
        parser.add_argument(
            "--user",
            metavar="NAME",
            help="Only runs of the user of this name; if there is none, of a former one.",
        )
        parser.add_argument(
            "--task",
            action="append",
            metavar="NAME",
            help="Only runs of this task; a glob pattern will do. Can be repeated.",
        )
        parser.add_argument(
            "--batch-size",
            type=int,
            default=BATCH_SIZE,
            metavar="N",
            help="How many runs one transaction deletes at most. Default: %(default)s.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only say how many runs would be deleted."
        )
        parser.add_argument("--yes", action="store_true", help="Do not ask.")

    def handle(
        self,
        *,
        state: Sequence[str] | None,
        user: str | None,
        task: Sequence[str] | None,
        batch_size: int,
        dry_run: bool,
        yes: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        """Ask, delete, and say how many runs went; exit with 1 if any stay."""
        if batch_size < 1:
            raise CommandError("--batch-size must be 1 or more.")
        states = _states(state)
        try:
            chosen = clearance(states=states, tasks=tuple(task or ()), user_name=user)
            numbers = count_by_state(chosen)
        except PruneError as error:
            raise CommandError(str(error)) from error
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database can't be asked: {error}") from error
        if verbosity or not yes:
            self.stdout.write(_listing(numbers))
        if not numbers:
            return
        if dry_run:
            self.stdout.write(NOTHING)
            return
        question = f"Delete {_runs(sum(numbers.values()))}?"
        if not yes and not is_confirmed(question, self.stdout):
            self.stdout.write(NOTHING)
            sys.exit(1)
        self._clear(chosen, batch_size=batch_size, verbosity=verbosity)

    def _clear(self, chosen: Clearance, *, batch_size: int, verbosity: int) -> None:
        """Delete batch by batch until a signal comes, and tell how many went and why some stay."""
        total, stop = 0, Event()
        try:
            with stopped_by_signals(stop):
                for number in clear(chosen, batch_size=batch_size):
                    total += number
                    if number and (verbosity > 1 or (verbosity and self.stdout.isatty())):
                        self.stdout.write(f"{total:,} runs deleted so far")
                    if stop.is_set():
                        break
            left = remainder(chosen)
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(
                f"The database broke off: {error} Deleted {_runs(total)} before."
            ) from error
        if verbosity:
            self.stdout.write(f"Deleted {_runs(total)}.")
        if stop.is_set():
            raise CommandError(f"Stopped by a signal: {_stay(left.total)}.")
        if left.total:
            self.stderr.write(f"{_stay(left.total).capitalize()}: {_reasons(left)}.")
            sys.exit(1)


def _states(names: Sequence[str] | None) -> frozenset[State]:
    """Return the states of these names; all of them if none is named."""
    unknown = [name for name in names or () if name.upper() not in State.values]
    if unknown:
        raise CommandError(f"--state {unknown[0]}: the states are {', '.join(State)}.")
    return frozenset(State(name.upper()) for name in names or State.values)


def _listing(numbers: Mapping[State, int]) -> str:
    """Tell how many runs are to go, in which states, and what that means."""
    if not numbers:
        return "There are no such runs."
    lines = [f"{number:>12,}  {state.value}" for state, number in numbers.items()]
    lines += [f"{sum(numbers.values()):>12,}  together", WARNING]
    unfinished = {state: number for state, number in numbers.items() if state in UNFINISHED}
    if unfinished:
        text = f"{sum(unfinished.values()):,} not finished"
        lines.append(UNFINISHED_WARNING.format(unfinished=text))
    kept = sum(number for state, number in numbers.items() if state in KEPT)
    if kept:
        lines.append(KEPT_WARNING.format(kept=f"{kept:,} scheduled or waiting"))
    return "\n".join(lines)


def _reasons(left: Remainder) -> str:
    """Tell why runs stay."""
    texts = {WAITED_FOR: left.awaited, PROTECTED: left.protected, BUSY: left.busy}
    return ", ".join(text.format(runs=f"{number:,}") for text, number in texts.items() if number)


def _runs(number: int) -> str:
    return f"{number:,} {'run' if number == 1 else 'runs'}"


def _stay(number: int) -> str:
    return f"{_runs(number)} {'stays' if number == 1 else 'stay'}"
