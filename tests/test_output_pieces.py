"""How output is cleaned, cut and written: without a worker, flush by flush."""

from __future__ import annotations

import time

import pytest
from django.db import DatabaseError, connection
from hypothesis import given
from hypothesis import strategies as st

from celery_admin_runner import output as output_module
from celery_admin_runner.capture import STDERR, STDOUT
from celery_admin_runner.models import TaskRunOutput
from celery_admin_runner.output import FLUSH_SIZE, Output, _Cleaner
from celery_admin_runner.redaction import MASK
from celery_admin_runner.states import State
from tests.factories import make_run


@pytest.fixture
def run(db):
    return make_run(state=State.STARTED)


@pytest.fixture
def output(run):
    return Output(row=lambda: run.pk)


def rows(run):
    return list(run.output.values_list("stream", "text"))


def cleaned(parts, *secrets):
    """Return what is stored of the parts of a text, each in a flush of its own."""
    cleaner = _Cleaner(secrets)
    stored = [cleaner.clean(part) for part in parts]
    return [*stored, cleaner.clean("", is_last=True)]


# Cleaning


@given(
    st.text(alphabet="abc", max_size=40),
    st.lists(st.text(alphabet="abc", min_size=2, max_size=5), min_size=1, max_size=3),
    st.data(),
)
def test_in_parts_as_much_is_masked_as_in_one(text, secrets, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    stored = "".join(cleaned(parts, *secrets))

    assert not any(secret in stored for secret in secrets)


def test_a_secret_in_two_flushes_is_masked():
    assert "".join(cleaned(["it is Ses", "ame, yes"], "Sesame")) == f"it is {MASK}, yes"


def test_a_secret_whose_beginning_is_another_is_masked_whole():
    assert "".join(cleaned(["abc", "def!"], "abc", "abcdef")) == f"{MASK}!"


def test_a_secret_that_ends_as_it_begins_is_masked_in_time():
    stored = cleaned(["is aba", " and on"], "aba")

    assert "".join(stored) == f"is {MASK} and on"


def test_what_is_no_secret_in_the_end_is_not_lost():
    assert "".join(cleaned(["a Ses", "sion"], "Sesame")) == "a Session"
    assert "".join(cleaned(["a Ses"], "Sesame")) == "a Ses"


def test_a_secret_with_colours_in_it_is_masked():
    assert "".join(cleaned(["Ses\x1b[1m", "ame"], "Sesame")) == MASK


def test_an_escape_in_two_flushes_is_left_out():
    assert "".join(cleaned(["a\x1b[1;", "31mb\x1b", "[0m"])) == "ab"


def test_a_line_that_is_overwritten_is_shown_once_a_flush():
    assert "".join(cleaned(["1%\r2%\r", "3%\r4%\r", "5%\r\nend\n"])) == "2%\n4%\n5%\nend\n"


# Rows


def test_nothing_is_written_while_there_is_nothing(output, django_assert_num_queries):
    with django_assert_num_queries(0):
        output.flush()
        output.close()
        output.flush()


def test_pieces_of_several_streams_are_written_by_one_insert(output, run):
    output.add(STDOUT, "one\n")
    output.add(STDOUT, "two\n")
    output.add(STDERR, "oh\n")
    output.add(STDOUT, "three\n")

    inserts = Statements("INSERT")
    with connection.execute_wrapper(inserts):
        output.flush()

    assert inserts.number == 1
    assert rows(run) == [("stdout", "one\ntwo\n"), ("stderr", "oh\n"), ("stdout", "three\n")]


def test_numbers_are_microseconds_and_grow(output, run):
    before = time.time_ns() // 1000
    for _ in range(3):
        output.add(STDOUT, "x")
        output.add(STDERR, "y")
        output.flush()

    seqs = list(run.output.values_list("seq", flat=True))
    assert seqs == sorted(set(seqs))
    assert before <= seqs[0] <= seqs[-1] <= time.time_ns() // 1000 + 10


def test_no_row_is_longer_than_one_flush(output, run):
    output.add(STDOUT, "ü" * FLUSH_SIZE)
    output.flush()

    lengths = [len(text.encode()) for _, text in rows(run)]
    assert sum(lengths) == 2 * FLUSH_SIZE
    assert max(lengths) <= FLUSH_SIZE


def test_a_run_without_a_row_keeps_nothing(db):
    output = Output(row=lambda: None)
    output.add(STDOUT, "x")

    output.flush()

    assert TaskRunOutput.objects.count() == 0


def test_after_the_end_nothing_is_taken(output, run):
    output.close()
    output.add(STDOUT, "late")
    output.flush()

    assert rows(run) == []


# The limit


@pytest.fixture
def small(run, configure):
    configure(OUTPUT_MAX_BYTES=2000)
    return Output(row=lambda: run.pk)


def write_lines(output, first, last, *, flush_each=10):
    for line in range(first, last):
        output.add(STDOUT, f"line {line:04}\n")
        if line % flush_each == 0:
            output.flush()


def test_what_fits_is_kept_whole(small, run):
    write_lines(small, 0, 150)
    small.close()
    small.flush()

    assert run.complete_output() == "".join(f"line {line:04}\n" for line in range(150))


@pytest.mark.parametrize("flush_each", [3, 10, 10_000])
def test_of_too_much_the_beginning_and_the_end_are_kept(small, run, flush_each):
    write_lines(small, 0, 1000, flush_each=flush_each)
    small.close()
    small.flush()

    text = run.complete_output()
    beginning, note, end = text.partition("\n[Over 2000 bytes of output: what came here")
    assert beginning.startswith("line 0000\nline 0001\n")
    assert note
    assert end.endswith("line 0998\nline 0999\n")
    assert 1700 < len(beginning) + len(end) <= 2100
    assert "note" in {stream for stream, _ in rows(run)}


def test_the_database_never_holds_much_more_than_the_limit(small, run):
    for line in range(600):
        small.add(STDOUT, f"line {line:04}\n")
        small.flush()
        if line % 100 == 0:
            assert len(run.complete_output()) <= 2100


def test_characters_stay_whole_where_output_is_cut(small, run):
    for _ in range(50):
        small.add(STDOUT, "a" + "ü€😀" * 20)
        small.flush()

    assert "\ufffd" not in run.complete_output()


def test_the_rows_of_a_run_are_limited_too(output, run, monkeypatch):
    monkeypatch.setattr(output_module, "MAX_ROWS", 20)
    for number in range(200):
        output.add(STDOUT, f"{number}\n")
        output.add(STDERR, "b")
    output.flush()

    assert len(rows(run)) == 41
    assert run.complete_output().startswith("0\nb1\nb")
    assert run.complete_output().endswith("199\nb")


def test_while_the_database_is_away_memory_holds_no_more_than_the_limit(small, run):
    with connection.execute_wrapper(Refusal()):
        for line in range(3000):
            small.add(STDOUT, f"line {line:04}\n")
            if line % 500 == 0:
                with pytest.raises(DatabaseError):
                    small.flush()

    assert sum(piece.size for piece in [*small._head, *small._tail]) <= 2100
    # What it was inside of was rolled back.
    connection.needs_rollback = False
    small.close()
    small.flush()
    text = run.complete_output()
    assert text.startswith("line 0000\n")
    assert "left out" in text
    assert text.endswith("line 2999\n")


def test_a_limit_of_nothing_keeps_nothing(run, configure):
    configure(OUTPUT_MAX_BYTES=0)
    output = Output(row=lambda: run.pk)
    output.add(STDOUT, "text")
    output.close()
    output.flush()

    assert rows(run) == []


@pytest.mark.parametrize("limit", [1, 5, 20])
def test_a_tiny_limit_breaks_nothing(run, configure, limit):
    configure(OUTPUT_MAX_BYTES=limit)
    output = Output(row=lambda: run.pk)
    for _ in range(10):
        output.add(STDOUT, "ü😀\n" * 10)
        output.flush()

    assert "left out" in run.complete_output()


class Statements:
    """Counts the statements that begin with a word."""

    def __init__(self, word):
        self.word = word
        self.number = 0

    def __call__(self, execute, sql, *args):
        self.number += sql.startswith(self.word)
        return execute(sql, *args)


class Refusal:
    """Stands for a database that does not answer."""

    def __call__(self, execute, sql, *args):
        raise DatabaseError("gone")
