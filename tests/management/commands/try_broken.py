"""A command whose parser can't be built."""

from __future__ import annotations

from django.core.management import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    def add_arguments(self, parser: CommandParser) -> None:
        raise CommandError("no parser today")
