"""Plain text of what was meant for a terminal: no colours, and nothing that was overwritten."""

from __future__ import annotations

import re

#: An escape that is not complete yet is waited for so many characters long.
OPEN_MAX_LENGTH = 4096

_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, and moves of the cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-~]"
)
#: The beginning of one, at the end of a text.
_OPEN = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*\Z|\x1b[\]PX^_][^\x07\x1b]*\x1b?\Z|\x1b[ -/]*\Z")
#: All control characters but NUL, tab, newline and carriage return.
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def without_escapes(text: str) -> str:
    """Return ``text`` without ANSI escapes and control characters."""
    if not _CONTROL.search(text):
        return text
    return _CONTROL.sub("", _ESCAPE.sub("", text))


def open_escape_at(text: str) -> int:
    """Return where in ``text`` an escape begins that its end cuts off; its length if nowhere."""
    start = max(len(text) - OPEN_MAX_LENGTH, 0)
    found = _OPEN.search(text, start)
    return found.start() if found else len(text)


def overwritten(text: str, *, is_begun: bool = False) -> str:
    r"""Return ``text`` as a terminal shows it in the end: what ``\r`` overwrites is left out.

    ``is_begun``: its first line goes on with one that is shown already, and can't be taken
    back; what overwrites that stands on a line of its own.
    """
    if "\r" not in text:
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    breaks = "\n" if is_begun and "\r" in lines[0] else ""
    return breaks + "\n".join(map(_last_part, lines))


def _last_part(line: str) -> str:
    return next((part for part in reversed(line.split("\r")) if part), "")
