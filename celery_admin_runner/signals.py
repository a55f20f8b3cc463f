"""What the package tells to others, and when."""

from __future__ import annotations

from django.dispatch import Signal

#: Sent by ``TaskRunner`` (the class is the sender) when a run was handed to the
#: broker, after the commit and the publish; for a run that was kept until then in the
#: process of the dispatcher. Keyword arguments: ``task_name``, ``task_id``, ``args`` and
#: ``kwargs`` (secrets masked), ``user`` who asked for it (None: trusted code, or a user who
#: is gone) and ``run``, the TaskRunRecord. Sent robustly: an error of a receiver is
#: logged by Django and stops neither the run nor the other receivers.
TaskRunSignal = Signal()
