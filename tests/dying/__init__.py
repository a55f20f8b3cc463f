"""Dispatchers that are killed at random: ``python -m tests.dying --kills 50 --queue NAME``."""

import os

import django
from django.apps import apps

#: The message header with the moment at which it was published, in seconds since 1970.
SENT_AT = "sent_at"
#: The label of runs that begin to come due when the dispatchers start.
COMING = "coming"

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
if not apps.ready:
    django.setup()
