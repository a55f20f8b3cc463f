"""Measurements that are no tests: ``python -m tests.benchmarks``."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()
