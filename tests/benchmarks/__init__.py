"""Measurements that are no tests: ``python -m tests.benchmarks``."""

import os
import sys
from argparse import ArgumentParser

import django

if "--database" in " ".join(sys.argv):
    # The settings read the address from the environment, before anything else is imported.
    _first = ArgumentParser(add_help=False, allow_abbrev=False)
    _first.add_argument("--database")
    os.environ["DATABASE_URL"] = _first.parse_known_args()[0].database or ""

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()
