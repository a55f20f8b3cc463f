"""Delete finished runs that are older than they must be kept."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from django.utils.formats import date_format

from celery_admin_runner.archive import archive_and_prune
from celery_admin_runner.conf import SETTING, settings
from celery_admin_runner.deletion import BATCH_SIZE
from celery_admin_runner.durations import parse_duration
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.export import write_csv
from celery_admin_runner.retention import SEEN_AGE, Selection, count, cutoff_before, prune
from celery_admin_runner.states import FINISHED, State


class Command(BaseCommand):
    """``manage.py prune_taskruns``."""

    help = (
        "Deletes finished task runs that are older than they must be kept, with their output. "
        "Unfinished runs are never deleted."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Describe the options."""
        parser.add_argument(
            "--older-than",
            type=_duration,
            metavar="DURATION",
            help="Delete runs that ended longer ago than this: 28d, 12h, 90m, 120s or ISO 8601 "
            "(P28D). Default: the setting RETENTION; with --seen 120s.",
        )
        parser.add_argument(
            "--seen",
            action="store_true",
            help="Only runs of which their user has seen the end, and that the site's own code "
            "started. What staff started in admin stays until it is as old as RETENTION, whoever "
            "looked at it: of that the journal is the audit.",
        )
        parser.add_argument(
            "--state",
            action="append",
            metavar="STATE",
            help=f"Only runs in this state: {', '.join(sorted(FINISHED))}. Can be repeated.",
        )
        parser.add_argument(
            "--task",
            action="append",
            metavar="NAME",
            help="Only runs of this task; a glob pattern will do. Can be repeated.",
        )
        parser.add_argument(
            "--keep-last",
            type=int,
            default=0,
            metavar="N",
            help="Keep the newest N finished runs of each task, however old.",
        )
        parser.add_argument(
            "--batch-size",
            type=int,
            default=BATCH_SIZE,
            metavar="N",
            help="How many runs one transaction deletes at most. Default: %(default)s.",
        )
        parser.add_argument(
            "--export",
            type=Path,
            metavar="FILE.csv",
            help="First write the runs into this new file. Nothing is deleted if that fails.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only say how many runs would be deleted."
        )

    def handle(
        self,
        *,
        older_than: timedelta | None,
        seen: bool,
        state: Sequence[str] | None,
        task: Sequence[str] | None,
        keep_last: int,
        batch_size: int,
        export: Path | str | None,
        dry_run: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        """Prune, and say how many runs went."""
        if keep_last < 0 or batch_size < 1:
            raise CommandError("--keep-last must be 0 or more, and --batch-size 1 or more.")
        try:
            selection = Selection(
                cutoff=cutoff_before(timezone.now(), _age(older_than, only_seen=seen)),
                states=_states(state),
                tasks=tuple(task or ()),
                keep_last=keep_last,
                only_seen=seen,
            )
            if dry_run:
                self._say("{runs} would be pruned", count(selection), selection, verbosity)
                return
            steps = (
                prune(selection, batch_size=batch_size)
                if export is None
                else archive_and_prune(
                    selection, Path(export), write=write_csv, batch_size=batch_size
                )
            )
            pruned = self._sum(steps, verbosity)
        except PruneError as error:
            raise CommandError(str(error)) from error
        self._say("Pruned {runs}", pruned, selection, verbosity)
        if export is not None and verbosity:
            self.stdout.write(f"They are kept in {export}.")

    def _sum(self, steps: Iterator[int], verbosity: int) -> int:
        """Add up the batches, and tell how far it got who watches or asked for it."""
        total = 0
        for step in steps:
            total += step
            if verbosity > 1 or (verbosity and self.stdout.isatty()):
                self.stdout.write(f"{total:,} runs pruned so far")
        return total

    def _say(self, text: str, runs: int, selection: Selection, verbosity: int) -> None:
        """Tell the result and the moment that divided old from new."""
        if verbosity:
            noun = "seen run" if selection.only_seen else "run"
            what = text.format(runs=f"{runs:,} {noun if runs == 1 else f'{noun}s'}")
            cutoff = selection.cutoff
            local = timezone.localtime(cutoff) if timezone.is_aware(cutoff) else cutoff
            moment = date_format(local, "Y-m-d H:i:s T")
            self.stdout.write(f"{what} that ended before {moment}.")


def _duration(text: str) -> timedelta:
    """Read a duration; argparse shows the message of this error only."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def _age(older_than: timedelta | None, *, only_seen: bool) -> timedelta:
    """Return the age that was asked for, else the setting's, or that for what was seen."""
    default = SEEN_AGE if only_seen else settings.RETENTION
    age: timedelta | None = default if older_than is None else older_than
    if age is None:
        raise CommandError(
            f"{SETTING}['RETENTION'] is None: finished runs are kept for ever. Say which are "
            "to go all the same, for example with --older-than 28d."
        )
    return age


def _states(names: Sequence[str] | None) -> frozenset[State]:
    """Return the finished states of these names; all of them if none is named."""
    if not names:
        return FINISHED
    unknown = [name for name in names if name.upper() not in FINISHED]
    if unknown:
        raise CommandError(
            f"--state {unknown[0]}: only finished runs are pruned, that is "
            f"{', '.join(sorted(FINISHED))}."
        )
    return frozenset(State(name.upper()) for name in names)
