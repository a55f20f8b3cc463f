"""Ask the person at the keyboard before a command does what can't be undone."""

from __future__ import annotations

from django.core.management.base import CommandError, OutputWrapper


def is_confirmed(question: str, stdout: OutputWrapper) -> bool:
    """Ask, and tell whether the answer is "yes"; Ctrl-C is a no.

    Raises CommandError where there is nobody to ask.
    """
    stdout.write(question)
    stdout.flush()
    try:
        return input("Type “yes”: ").strip().lower() == "yes"
    except KeyboardInterrupt:
        stdout.write("")
        return False
    except EOFError as error:
        raise CommandError("There is nobody to ask: say --yes. Nothing was done.") from error
