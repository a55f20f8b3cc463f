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

#: Sent after every move of a run from one state to another, after the commit, in the process
#: that moved it: the web process, the worker, the dispatcher. The sender is TaskRunRecord.
#: Keyword arguments: ``run``, the TaskRunRecord as it was right after the move, ``from_state``
#: and ``to_state``, each a State. That a run is made is no move. Sent robustly. While somebody
#: listens, each move costs a transaction of three statements in place of one.
run_changed = Signal()

#: Sent after the progress of a run was written down: twice a second at most for each run, in
#: its worker; the last step of a run comes with its end, by ``run_changed``. The sender is
#: TaskRunRecord. Keyword arguments: ``task_id``, ``run_pk`` and ``user_pk``, the primary keys
#: of the run and, as text, of its user ("" for none), ``current``, ``total`` (None: unknown)
#: and ``message``. Sent robustly. Nothing is asked of the database for it.
run_progressed = Signal()
