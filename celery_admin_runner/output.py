"""Keep what a run prints and logs, and write it down piece by piece.

Tasks only append to a list; cleaning, counting and writing happen a flush at a time. In
memory stays at most what OUTPUT_MAX_BYTES allows, however much a task prints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from threading import RLock
from time import monotonic, time_ns

from django.db import IntegrityError

from celery_admin_runner.ansi import open_escape_at, overwritten, without_escapes
from celery_admin_runner.capture import NOTE
from celery_admin_runner.conf import settings
from celery_admin_runner.encoding import storable_text
from celery_admin_runner.models import TaskRunOutput
from celery_admin_runner.recording import database
from celery_admin_runner.redaction import EVERYTHING, MASK, scrub

#: Output is written down after so many characters, if not after OUTPUT_FLUSH_SECONDS; and
#: no row is longer, in bytes.
FLUSH_SIZE = 64 * 1024
#: What a piece in memory costs beside its text, about, in bytes.
PIECE_COST = 32
#: The beginning and the end have at most so many rows each: a stream of its own for each
#: character would make many.
MAX_ROWS = 10_000
#: At most so many bytes go in one INSERT.
INSERT_SIZE = 1024 * 1024
#: Stored in place of what OUTPUT_MAX_BYTES leaves out.
LEFT_OUT = "\n[Over {limit} bytes of output: what came here was left out.]\n"


class _Cleaner:
    """Makes the pieces of one stream fit to be stored: no escapes, no secrets.

    What may be the beginning of an escape or of a secret is held back until more is known.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        texts = frozenset(secrets)
        self._hides_all = EVERYTHING in texts
        self._secrets = (texts | frozenset(map(without_escapes, texts))) - {""}
        self._held = ""
        #: Whether what was let through last ended within a line.
        self._is_begun = False

    def clean(self, text: str, *, is_last: bool = False) -> str:
        """Return what of the held and the new text can be stored."""
        if self._hides_all:
            return f"{MASK}\n" if text else ""
        text = self._held + text
        cut = len(text) if is_last else open_escape_at(text)
        plain, escape = without_escapes(text[:cut]), text[cut:]
        cut = len(plain) if is_last else _safe_length(plain, self._secrets)
        self._held = plain[cut:] + escape
        shown = overwritten(scrub(plain[:cut], self._secrets), is_begun=self._is_begun)
        if shown:
            self._is_begun = not shown.endswith("\n")
        return storable_text(shown)


def _safe_length(text: str, secrets: frozenset[str]) -> int:
    r"""Return how much of ``text`` can be let through before more of it is known.

    Not what may be the beginning of a secret, also if a shorter secret ends in it; nor a
    last ``\r``: with the next character it may be the end of a line.
    """
    cut = min((_beginning_at(text, secret) for secret in secrets), default=len(text))
    while (earlier := min((_across(text, secret, cut) for secret in secrets), default=cut)) < cut:
        cut = earlier
    while cut and text[cut - 1] == "\r":
        cut -= 1
    return cut


def _beginning_at(text: str, secret: str) -> int:
    """Return where at the end of ``text`` a part of ``secret`` begins that is not all of it."""
    at = text.find(secret[0], max(len(text) - len(secret) + 1, 0))
    while at >= 0:
        # Most are told apart by a few characters; only the others are compared whole.
        if secret.startswith(text[at : at + 8]) and secret.startswith(text[at:]):
            return at
        at = text.find(secret[0], at + 1)
    return len(text)


def _across(text: str, secret: str, cut: int) -> int:
    """Return where the secret begins that lies across ``cut``, or ``cut``."""
    at = text.find(secret, max(cut - len(secret) + 1, 0), cut + len(secret) - 1)
    return cut if at < 0 else min(at, cut)


@dataclass(kw_only=True)
class _Piece:
    """A row to be, or one that is."""

    seq: int
    stream: str
    text: str
    size: int
    is_written: bool = False


class Output:
    """The output of one attempt of a run.

    ``row`` gives the primary key of the run, None if it has no row; ``secrets`` the texts
    that must not be stored, asked for with the first piece; ``on_due`` is called when there
    is something to flush: when the first piece comes, and when it is much.
    """

    def __init__(
        self,
        *,
        row: Callable[[], int | None],
        secrets: Callable[[], Iterable[str]] = frozenset,
        on_due: Callable[[], None] = lambda: None,
    ) -> None:
        self._row = row
        self._secrets = secrets
        self._on_due = on_due
        #: A signal's handler may print too, in the midst of what it interrupts.
        self._lock = RLock()
        self._flushing = RLock()
        self._raw: deque[tuple[str, str]] = deque()
        self._raw_size = 0
        self._cleaners: dict[str, _Cleaner] = {}
        #: Half of the limit is for the beginning, the rest for the end.
        limit = settings.OUTPUT_MAX_BYTES
        self._limit = limit
        self._head_room = limit // 2
        self._head_rows = 0
        self._tail_size = limit - limit // 2
        #: Smaller pieces for a small limit, as the end loses whole pieces.
        self._piece_size = max(min(FLUSH_SIZE, self._tail_size // 8), 1)
        self._head: list[_Piece] = []
        self._tail: deque[_Piece] = deque()
        self._tail_taken = 0
        self._note: _Piece | None = None
        self._is_cut = False
        #: The last row that has fallen out of the end, and is still in the database.
        self._fallen = 0
        self._seq = 0
        self._is_full = False
        #: Without room there is nothing to take.
        self._is_closed = limit <= 0
        #: When the oldest piece came that is not written down; on the monotonic clock.
        self.waits_since: float | None = None

    def add(self, stream: str, text: str) -> None:
        """Take a piece of output."""
        if self._is_closed:
            return
        self._raw.append((stream, text))
        self._raw_size += len(text) + PIECE_COST
        if self.waits_since is None:
            self.waits_since = monotonic()
            self._on_due()
        if self._raw_size >= FLUSH_SIZE:
            self._digest()
            if self.is_much:
                self._on_due()

    @property
    def is_much(self) -> bool:
        """Tell whether so much waits that it is to be flushed at once."""
        return sum(piece.size for piece in self._head) >= FLUSH_SIZE

    def close(self) -> None:
        """Take no more output, and hold nothing back any more."""
        self._is_closed = True
        with self._lock:
            self._digest()
            for stream, cleaner in self._cleaners.items():
                self._keep(stream, cleaner.clean("", is_last=True))

    def flush(self) -> None:
        """Write down what waits: nothing, or an INSERT, and a DELETE of what has fallen out.

        Raises recording.FAULTS; then it still waits.
        """
        with self._flushing:
            if self.waits_since is None:
                return
            pieces, fallen = self._take()
            is_done = False
            try:
                self._write(pieces, fallen)
                is_done = True
            except IntegrityError:
                # The run is gone, and with it whoever could read this.
                self._abandon()
                is_done = True
            finally:
                if not is_done:
                    self._take_back(pieces, fallen)
            for piece in pieces:
                piece.text = ""

    def _take(self) -> tuple[list[_Piece], int]:
        """Return what is to be written, and up to which row the end is to be deleted."""
        with self._lock:
            self.waits_since = None
            self._digest()
            note = [self._note] if self._is_cut and self._note else []
            pieces = [*self._head, *note, *self._tail]
            pieces = [piece for piece in pieces if not piece.is_written]
            for piece in pieces:
                piece.is_written = True
            self._head.clear()
            fallen, self._fallen = self._fallen, 0
            return pieces, fallen

    def _take_back(self, pieces: list[_Piece], fallen: int) -> None:
        """Let what could not be written wait again."""
        with self._lock:
            for piece in pieces:
                piece.is_written = False
            first_of_end = self._note.seq if self._note else self._seq + 1
            self._head[:0] = [piece for piece in pieces if piece.seq < first_of_end]
            self._fallen = max(self._fallen, fallen)
            self.waits_since = self.waits_since or monotonic()

    def _write(self, pieces: list[_Piece], fallen: int) -> None:
        run = self._row() if pieces or fallen else None
        if run is None:
            return
        rows = TaskRunOutput.objects.using(database())
        for batch in _batches(pieces):
            rows.bulk_create(
                [
                    TaskRunOutput(run_id=run, seq=piece.seq, stream=piece.stream, text=piece.text)
                    for piece in batch
                ],
                # Rows that were written before the connection broke are not written again.
                ignore_conflicts=True,
            )
        if fallen and self._note:
            rows.filter(run=run, seq__gt=self._note.seq, seq__lte=fallen).delete()

    def _abandon(self) -> None:
        self._is_closed = True
        with self._lock:
            self._raw.clear()
            self._head.clear()
            self._tail.clear()
            self.waits_since = None

    def _digest(self) -> None:
        """Clean what was printed, and keep of it what there is room for."""
        with self._lock:
            raw = [self._raw.popleft() for _ in range(len(self._raw))]
            self._raw_size = 0
            for stream, group in groupby(raw, key=itemgetter(0)):
                cleaner = self._cleaners.get(stream)
                if cleaner is None:
                    cleaner = self._cleaners[stream] = _Cleaner(self._secrets())
                self._keep(stream, cleaner.clean("".join(text for _, text in group)))

    def _keep(self, stream: str, text: str) -> None:
        data = text.encode()
        if data and not self._is_full:
            data = self._keep_in_head(stream, data)
        if len(data) > self._tail_size:
            data = data[-self._tail_size :].decode(errors="ignore").encode()
            self._is_cut = True
        for part in _parts(data, self._piece_size):
            self._keep_in_tail(stream, part)

    def _keep_in_head(self, stream: str, data: bytes) -> bytes:
        """Keep the beginning of the output; return what there is no room for."""
        kept = _start_of(data, self._head_room if self._head_rows < MAX_ROWS else 0)
        self._head_room -= len(kept)
        for part in _parts(kept, FLUSH_SIZE):
            self._head_rows += self._append(self._head, stream, part, FLUSH_SIZE)
        if len(kept) < len(data):
            self._is_full = True
            text = LEFT_OUT.format(limit=self._limit)
            self._note = _Piece(seq=self._next_seq(), stream=NOTE, text=text, size=len(text))
        return data[len(kept) :]

    def _keep_in_tail(self, stream: str, data: bytes) -> None:
        """Keep the end of the output, and let go what is no longer its end."""
        self._tail_taken += len(data)
        self._append(self._tail, stream, data, self._piece_size)
        while len(self._tail) > MAX_ROWS or (
            self._tail_taken > self._tail_size and len(self._tail) > 1
        ):
            gone = self._tail.popleft()
            self._tail_taken -= gone.size
            self._is_cut = True
            if gone.is_written:
                self._fallen = gone.seq

    def _append(
        self, pieces: list[_Piece] | deque[_Piece], stream: str, data: bytes, limit: int
    ) -> bool:
        """Append to the last piece, or as a new one; tell whether it is new."""
        last = pieces[-1] if pieces else None
        if (
            last is not None
            and not last.is_written
            and last.stream == stream
            and last.size + len(data) <= limit
        ):
            last.text += data.decode()
            last.size += len(data)
            return False
        text = data.decode()
        pieces.append(_Piece(seq=self._next_seq(), stream=stream, text=text, size=len(data)))
        return True

    def _next_seq(self) -> int:
        self._seq = max(self._seq + 1, time_ns() // 1000)
        return self._seq


def _start_of(data: bytes, size: int) -> bytes:
    """Return the first bytes of UTF-8 that are whole characters."""
    return data if len(data) <= size else data[:size].decode(errors="ignore").encode()


def _parts(data: bytes, size: int) -> Iterator[bytes]:
    """Yield UTF-8 in parts of whole characters."""
    # A character has four bytes at most.
    size = max(size, 4)
    while data:
        part = _start_of(data, size)
        yield part
        data = data[len(part) :]


def _batches(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Yield the pieces in as many as one INSERT takes."""
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        if batch and size + piece.size > INSERT_SIZE:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.size
    if batch:
        yield batch
