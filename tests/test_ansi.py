from __future__ import annotations

import pytest

from celery_admin_runner.ansi import open_escape_at, overwritten, without_escapes


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[38;5;196mred\x1b[39m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2Kdone\x1b(B", "done"),
        ("\x9b31mred", "red"),
        ("bell\x07back\x08", "bellback"),
        ("a\x1b", "a"),
        ("\x1b[\nno escape", "\nno escape"),
    ],
    ids=repr,
)
def test_escapes_and_control_characters_are_left_out(text, plain):
    assert without_escapes(text) == plain


@pytest.mark.parametrize(
    "beginning",
    ["\x1b", "\x1b[", "\x1b[1;3", "\x1b]0;ti", "\x1b]8;;x\x1b", "\x1b(", "\x9b3"],
    ids=repr,
)
def test_the_beginning_of_an_escape_is_found(beginning):
    assert open_escape_at(f"\x1b[1mtext{beginning}") == len("\x1b[1mtext")


def test_a_text_without_an_open_escape_is_whole():
    assert open_escape_at("\x1b[1mtext") == len("\x1b[1mtext")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1%\r2%\r3%\n", "3%\n"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("\r1%\r2%", "2%"),
        ("done\r", "done"),
        ("a\n1\r2\nb", "a\n2\nb"),
    ],
    ids=repr,
)
def test_what_is_overwritten_is_left_out(text, shown):
    assert overwritten(text) == shown


def test_what_overwrites_a_line_that_is_shown_already_stands_on_its_own():
    assert overwritten("\r20%\r30%", is_begun=True) == "\n30%"
    assert overwritten("goes on\n", is_begun=True) == "goes on\n"
