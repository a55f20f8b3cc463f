"""A command with subcommands."""

from __future__ import annotations

from typing import Any

from django.core.management import BaseCommand, CommandParser


class Command(BaseCommand):
    help = "Open or close something."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--noinput", action="store_false", dest="interactive")
        verbs = parser.add_subparsers(dest="verb", required=True)
        opening = verbs.add_parser("open")
        opening.add_argument("name")
        opening.add_argument("--wide", action="store_true")
        verbs.add_parser("close")

    def handle(self, *, verb: str, interactive: bool, **options: Any) -> str:
        return f"{verb} {options.get('name', '')} {options.get('wide', False)} {interactive}"
