"""A command that ends as it is told."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    help = "End as told."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("how", choices=["well", "error", "exit", "ask", "print"])
        parser.add_argument("--code", type=int, help="The exit code.")
        parser.add_argument("--text", default="")

    def handle(self, *, how: str, code: int | None, text: str, **options: Any) -> None:
        self.stdout.write(self.style.SUCCESS("to stdout"))
        self.stderr.write(self.style.ERROR("to stderr"))
        if how == "error":
            raise CommandError(text, returncode=7)
        if how == "exit":
            sys.exit(text or code)
        if how == "ask":
            input("Are you sure? ")
        if how == "print":
            sys.stdout.write(text)
