"""Archive what is pruned: the file is whole and closed before the first run goes."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TextIO

from django.db import router

from celery_admin_runner.deletion import BATCH_SIZE
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import TaskRunRecordQuerySet
from celery_admin_runner.retention import Selection, batches, delete

#: Writes the runs of some querysets into a file, below one line of headings; returns how many.
Writer = Callable[[Iterable[TaskRunRecordQuerySet], TextIO], int]
#: How many runs are read for the archive by one query: SQLite can't be asked for many more.
PAGE_SIZE = 1000


def archive_and_prune(
    selection: Selection, path: Path, *, write: Writer, batch_size: int = BATCH_SIZE
) -> Iterator[int]:
    """Write the runs of ``selection`` into the new file ``path``, then delete exactly these.

    Yields after each batch how many went. Raises PruneError, before anything is
    deleted, if the file exists or can't be written whole. The keys of the runs
    written wait in a file of their own, so memory does not grow with their number.
    """
    with TemporaryFile() as keys:
        with _new_file(path) as file:
            _write_archive(selection, file, keys, write=write)
        keys.seek(0)
        yield from delete(selection, _read_keys(keys, batch_size))


def _write_archive(selection: Selection, file: TextIO, keys: IO[bytes], *, write: Writer) -> None:
    """Write the runs of ``selection`` into ``file``, and their primary keys into ``keys``."""
    runs = TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))

    def parts() -> Iterator[TaskRunRecordQuerySet]:
        for pks in batches(selection, batch_size=PAGE_SIZE, newest_first=True):
            keys.write(array("q", pks).tobytes())
            yield runs.filter(pk__in=pks)

    write(parts(), file)


def _read_keys(keys: IO[bytes], size: int) -> Iterator[list[int]]:
    """Yield what ``_write_archive`` kept, ``size`` keys at most at a time."""
    while data := keys.read(size * array("q").itemsize):
        yield array("q", data).tolist()


@contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    """Give a file that appears as ``path`` only when it is whole and on the disk."""
    if path.exists():
        raise PruneError(f"{path} exists already. Name a new file; nothing was deleted.")
    part = path.with_name(f"{path.name}.part")
    try:
        with ExitStack() as stack:
            file = part.open("x", encoding="utf-8", newline="")
            stack.callback(part.unlink, missing_ok=True)
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
            _sync_folder(path.parent)
    except FileExistsError as error:
        raise PruneError(
            f"{part} exists: another export writes it, or one was cut off and you may delete "
            "it. Nothing was deleted."
        ) from error
    except OSError as error:
        raise PruneError(f"{path} can't be written: {error}. Nothing was deleted.") from error


def _sync_folder(folder: Path) -> None:
    """Put the new name of a file on the disk too, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
