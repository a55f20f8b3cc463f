from __future__ import annotations

import copy
import sys
from io import BytesIO, StringIO, TextIOWrapper, UnsupportedOperation

import pytest

from celery_admin_runner.unattended import Stdin, no_input


def test_nobody_sits_at_the_standard_input() -> None:
    stdin = Stdin(StringIO("one\ntwo\nthree\n"))
    before = (stdin.isatty(), stdin.readline(), list(stdin), stdin.read())

    with no_input():
        for wait in (stdin.readline, stdin.read, lambda: list(stdin)):
            with pytest.raises(EOFError):
                wait()
        with pytest.raises(UnsupportedOperation):
            stdin.fileno()
        assert stdin.isatty() is False

    assert before == (False, "one\n", ["two\n", "three\n"], "")


def test_other_code_reads_on(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("yes\nno\n"))

    with no_input(), no_input():
        installed = sys.stdin

    assert isinstance(installed, Stdin)
    assert not isinstance(installed._original, Stdin)
    assert input() == "yes"
    assert sys.stdin.getvalue() == "yes\nno\n"
    assert isinstance(copy.copy(sys.stdin), Stdin)


def test_nobody_sits_at_the_other_ways_to_the_standard_input() -> None:
    stdin = Stdin(TextIOWrapper(BytesIO(b"one\ntwo\n")))
    before = next(stdin)

    with no_input():
        for wait in (
            lambda: next(stdin),
            lambda: stdin.readlines(),
            lambda: stdin.buffer.read(),
            lambda: stdin.detach(),
        ):
            with pytest.raises(EOFError):
                wait()

    assert (before, stdin.readlines()) == ("one\n", ["two\n"])


def test_a_command_that_closes_what_it_reads_leaves_the_standard_input_open() -> None:
    stdin = Stdin(StringIO("one"))

    with stdin as lines:
        assert lines.read() == "one"

    assert not stdin.closed


def test_a_process_without_standard_input_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)

    with no_input():
        assert sys.stdin is None
