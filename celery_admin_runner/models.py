"""The tables: runs, their output, what they wait for, faults while recording, and leases."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from django.conf import settings
from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models, router
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from celery_admin_runner.contexts import LABEL_MAX_LENGTH
from celery_admin_runner.encoding import is_altered
from celery_admin_runner.figures import Figures
from celery_admin_runner.querysets import (
    STEP_MAX,
    LeaseQuerySet,
    TaskRunRecordQuerySet,
    heard_of_at,
    is_stale,
    is_stale_scheduled,
)
from celery_admin_runner.redaction import has_mask
from celery_admin_runner.sparse import SparseIndex
from celery_admin_runner.states import FINISHED, State

if TYPE_CHECKING:
    from celery_admin_runner.registry import TaskInfo

#: Longest name of a task, and of a user, that fits.
NAME_MAX_LENGTH = 255
#: What ``publish_error`` begins with where the broker may have taken the message all the same.
NOT_CONFIRMED = "Not confirmed: "


class Source(models.TextChoices):
    """What asked for a run."""

    ADMIN = "admin", _("Admin")
    CODE = "code", _("Code")
    COMMAND = "command", _("Command")
    PERIODIC = "periodic", _("Periodic")
    RETRY = "retry", _("Run again")
    DEPENDENCY = "dependency", _("Dependency")


class TaskRunRecord(models.Model):
    """One requested execution of a task, under one Celery task id that never changes."""

    # Identity
    task_id = models.CharField(_("task id"), max_length=255)
    task_name = models.CharField(_("task"), max_length=NAME_MAX_LENGTH)
    label = models.CharField(_("label"), max_length=LABEL_MAX_LENGTH, blank=True)

    # Call
    #: Plain JSON of what was sent (``encoding.to_plain``), secrets masked.
    args = models.JSONField(_("positional arguments"), default=list, blank=True)
    kwargs = models.JSONField(_("keyword arguments"), default=dict, blank=True)
    #: Plain JSON of the options given to ``apply_async``: queue, priority, expires, ...
    options = models.JSONField(_("options"), default=dict, blank=True)
    queue = models.CharField(_("queue"), max_length=255, blank=True)

    # Who and why
    run_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("run by"),
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        db_index=False,
    )
    #: Kept when the user goes.
    run_by_name = models.CharField(_("run by"), max_length=NAME_MAX_LENGTH, blank=True)
    source = models.CharField(
        _("source"), max_length=16, choices=Source.choices, default=Source.CODE
    )
    reason = models.TextField(_("reason"), blank=True)
    #: The name of the schedule's entry that beat sent it for; "" for other runs.
    periodic_task_name = models.CharField(_("periodic task"), max_length=255, blank=True)

    # About
    content_type = models.ForeignKey(
        ContentType,
        verbose_name=_("about"),
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        db_index=False,
    )
    object_id = models.CharField(_("object id"), max_length=255, blank=True)
    obj = GenericForeignKey("content_type", "object_id")

    # Lineage
    retry_of = models.ForeignKey(
        "self",
        verbose_name=_("runs again"),
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="retried_by",
        db_index=False,
    )
    depends_on = models.ManyToManyField(
        "self",
        verbose_name=_("depends on"),
        symmetrical=False,
        blank=True,
        related_name="dependents",
    )
    #: Celery task ids of the run that started this one, and of the first of them all.
    parent_id = models.CharField(_("parent id"), max_length=255, blank=True)
    root_id = models.CharField(_("root id"), max_length=255, blank=True)

    # State
    state = models.CharField(
        pgettext_lazy("of a run", "state"),
        max_length=16,
        choices=State.choices,
        default=State.UNSENT,
    )
    #: Later attempts: 0 for the first.
    retries = models.PositiveIntegerField(_("retries"), default=0)
    cancel_requested_at = models.DateTimeField(_("cancel requested at"), null=True, blank=True)
    cancel_requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("cancel requested by"),
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        db_index=False,
    )

    # Times
    created_at = models.DateTimeField(_("created at"))
    #: Earliest start.
    eta = models.DateTimeField(_("earliest start"), null=True, blank=True)
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    published_at = models.DateTimeField(_("sent at"), null=True, blank=True)
    #: Start of the latest attempt.
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    heartbeat_at = models.DateTimeField(_("last heard of at"), null=True, blank=True)

    # Dispatch
    #: Claim token of who sends it now.
    dispatch_id = models.UUIDField(_("dispatch id"), null=True, blank=True)
    claimed_at = models.DateTimeField(_("claimed at"), null=True, blank=True)
    publish_error = models.TextField(_("error while sending"), blank=True)
    #: When a dispatcher is to send it: its ``eta``, or the moment when all that it waited for
    #: had succeeded. Null: no dispatcher is to send it.
    due_at = models.DateTimeField(_("due at"), null=True, blank=True)
    #: What else goes with the message of a kept run, as ``apply_async`` takes it: chain, link,
    #: group, ...; plain JSON.
    canvas = models.JSONField(_("canvas"), null=True, blank=True)

    # Uniqueness
    unique_key = models.CharField(_("unique key"), max_length=255, blank=True)
    #: The unique key while unfinished; null once finished, so the key is free again.
    active_key = models.CharField(_("active key"), max_length=255, null=True, blank=True)
    ignore_until = models.DateTimeField(_("ignore until"), null=True, blank=True)

    # Outcome
    #: Plain JSON of what it returned: secrets masked, shortened to RESULT_MAX_BYTES.
    result = models.JSONField(_("result"), null=True, blank=True)
    #: The JSON text of the whole result where ``result`` is shortened; written by our result
    #: backend, for ``AsyncResult.get()``.
    whole_result = models.TextField(_("whole result"), blank=True)
    #: For ``AsyncResult.children``: what Celery's ``AsyncResult.as_tuple`` gives, a list.
    children = models.JSONField(_("children"), null=True, blank=True)
    #: A state of the task's own (``Task.update_state``), which only Celery's results show.
    custom_state = models.CharField(_("custom state"), max_length=64, blank=True)
    exception = models.TextField(_("exception"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    worker = models.CharField(_("worker"), max_length=255, blank=True)

    # Progress
    progress_current = models.PositiveBigIntegerField(_("progress"), default=0)
    #: Null: unknown.
    progress_total = models.PositiveBigIntegerField(_("of"), null=True, blank=True)
    progress_message = models.CharField(_("progress message"), max_length=255, blank=True)

    # Display
    #: When its user looked at the end of it.
    seen_at = models.DateTimeField(_("seen at"), null=True, blank=True)

    objects = TaskRunRecordQuerySet.as_manager()

    class Meta:
        verbose_name = _("task run")
        verbose_name_plural = _("task runs")
        ordering: ClassVar[list[str]] = ["-id"]
        default_permissions = ("view",)
        permissions: ClassVar[list[tuple[str, Any]]] = [
            ("cancel_taskrunrecord", _("Can cancel task runs")),
            ("retry_taskrunrecord", _("Can run task runs again")),
            ("export_taskrunrecord", _("Can export task runs")),
        ]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["task_id"], name="taskrun_task_id_uniq"),
            models.UniqueConstraint(fields=["active_key"], name="taskrun_active_key_uniq"),
            models.CheckConstraint(
                condition=Q(state__in=sorted(State.values)), name="taskrun_state_known"
            ),
            models.CheckConstraint(
                condition=Q(active_key__isnull=True) | ~Q(state__in=sorted(FINISHED)),
                name="taskrun_finished_frees_key",
            ),
            models.CheckConstraint(
                condition=Q(finished_at__isnull=False) | ~Q(state__in=sorted(FINISHED)),
                name="taskrun_finished_has_time",
            ),
            models.CheckConstraint(
                condition=Q(seen_at__isnull=True) | Q(state__in=sorted(FINISHED)),
                name="taskrun_seen_is_finished",
            ),
        ]
        #: Each with the query that needs it. Every list of runs has the newest first, by
        #: ``created_at``, so one index serves a filter and a range of dates. Every insert pays
        #: for each that is not sparse: about 1 µs, and 100 bytes of the write-ahead log.
        indexes: ClassVar[list[models.Index]] = [
            # The whole journal, and a range of dates; ``export``, ``clear_taskruns``.
            models.Index(fields=["created_at"], name="taskrun_created_idx"),
            # Runs of one task, also in one state; the figures of the task list; the names of all
            # tasks (``skipping``); ``prune_taskruns --keep-last``.
            models.Index(fields=["task_name", "created_at", "state"], name="taskrun_by_task_idx"),
            # Runs in one state; what is stale, unfinished or not sent; the newest failures.
            models.Index(fields=["state", "created_at"], name="taskrun_by_state_idx"),
            # Runs from one source.
            models.Index(fields=["source", "created_at"], name="taskrun_by_source_idx"),
            # Runs of a user by name, who may be gone, also in one state.
            models.Index(
                fields=["run_by_name", "created_at", "state"], name="taskrun_by_user_name_idx"
            ),
            # The runs that a user may see who sees his or her own; a user who is deleted.
            SparseIndex(
                fields=["run_by", "created_at"], known="run_by", name="taskrun_by_user_idx"
            ),
            # What a user is shown: unseen, or seen just now; and what was seen and may go.
            models.Index(fields=["seen_at", "run_by"], name="taskrun_seen_idx"),
            # The latest runs of a schedule's entry.
            models.Index(
                fields=["periodic_task_name", "created_at"], name="taskrun_by_periodic_idx"
            ),
            # The runs about an object, and about each of several.
            SparseIndex(
                fields=["content_type", "object_id", "created_at"],
                known="content_type",
                name="taskrun_by_object_idx",
            ),
            # What a dispatcher sends next, and what one claimed and never sent.
            SparseIndex(fields=["due_at"], known="due_at", name="taskrun_due_idx"),
            # What ended before a moment (``prune_taskruns``), or since one (``dependencies``).
            SparseIndex(fields=["finished_at"], known="finished_at", name="taskrun_finished_idx"),
            # Whether the same call is ignored still, after a success.
            SparseIndex(
                fields=["unique_key", "ignore_until"],
                known="ignore_until",
                name="taskrun_ignored_idx",
            ),
            # The later runs of a run; a run, and a user, that are deleted.
            SparseIndex(fields=["retry_of"], known="retry_of", name="taskrun_retry_of_idx"),
            SparseIndex(
                fields=["cancel_requested_by"],
                known="cancel_requested_by",
                name="taskrun_cancelled_by_idx",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.label or self.task_name} ({self.task_id})"

    @property
    def is_finished(self) -> bool:
        """Tell whether the run has ended."""
        return self.state in FINISHED

    @property
    def duration(self) -> timedelta | None:
        """How long the latest attempt took; None until it has ended, or if it never started."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(self.finished_at - self.started_at, timedelta())

    @property
    def heard_of_at(self) -> datetime:
        """When something was last heard of the run; its ``eta``, if that is later."""
        return heard_of_at(self)

    def mark_seen(self, now: datetime | None = None) -> bool:
        """Write that its user saw how the run ended; tell whether that was news.

        One guarded UPDATE: an unfinished run, or one that was seen before, is left alone. A
        later attempt, or another end, makes it unseen again.
        """
        now = timezone.now() if now is None else now
        using = router.db_for_write(TaskRunRecord, instance=self)
        is_news = bool(TaskRunRecord.objects.using(using).filter(pk=self.pk).mark_seen(now))
        if is_news:
            self.seen_at = now
        return is_news

    # No template sees it by the way.
    mark_seen.alters_data = True  # type: ignore[attr-defined]

    def is_stale(self, now: datetime) -> bool:
        """Tell whether nobody has heard of the run for longer than is usual in its state."""
        return is_stale(self, now)

    def is_stale_scheduled(self, now: datetime) -> bool:
        """Tell whether a dispatcher took the run to send it, and was not heard of since."""
        return is_stale_scheduled(self, now)

    @property
    def may_have_been_sent(self) -> bool:
        """Tell whether somebody began to send the run, and nobody knows how far that came.

        Sent again, it may run twice. True also while it is being sent.
        """
        if self.state not in {State.UNSENT, State.SCHEDULED} or self.published_at is not None:
            return False
        return self.claimed_at is not None or self.publish_error.startswith(NOT_CONFIRMED)

    def complete_output(self, among: TaskRunRecordQuerySet | None = None) -> str:
        """Return all that is kept of what the run printed and logged, in the order it came.

        Before it stands the output of the runs that it depends on, also through others, each
        once, and each after that of its own dependencies. ``among``: of these runs only.
        """
        runs = TaskRunRecord.objects.using(self._state.db) if among is None else among
        order = runs.dependencies_of(self.pk)
        outputs: dict[int, list[str]] = {pk: [] for pk in order}
        for start in range(0, len(order), STEP_MAX):
            shown = runs.filter(pk__in=order[start : start + STEP_MAX]).values("pk")
            pieces = TaskRunOutput.objects.using(runs.db).filter(run__in=shown.order_by())
            for pk, text in pieces.order_by("run", "seq").values_list("run_id", "text"):
                outputs[pk].append(text)
        texts = ["".join(pieces) for pieces in outputs.values() if pieces]
        # The output of the next run begins on a line of its own.
        begun = [text if text.endswith("\n") else f"{text}\n" for text in texts[:-1]]
        return "".join([*begun, *texts[-1:]])

    @property
    def has_masked_arguments(self) -> bool:
        """Tell whether an argument is secret, so that only its user can give it again."""
        return has_mask(self.args) or has_mask(self.kwargs)

    @property
    def has_altered_arguments(self) -> bool:
        """Tell whether for an argument only a text is stored, which never was sent."""
        return any(map(is_altered, [*self.args, *self.kwargs.values()]))

    @property
    def lost_options(self) -> list[str]:
        """The names of the options that are not stored as they were sent: a secret header."""
        return [
            name for name, value in self.options.items() if is_altered(value) or has_mask(value)
        ]

    @property
    def can_be_repeated(self) -> bool:
        """Tell whether the row holds all that was sent as it was, so that it can be sent again."""
        is_whole = not self.has_masked_arguments and not self.has_altered_arguments
        return is_whole and not self.lost_options


class CeleryTask(TaskRunRecord):
    """A registered task: a proxy, so that admin and permissions have a model; never a row."""

    info: TaskInfo
    figures: Figures
    #: Whether the user who looks may run it.
    may_run: bool

    class Meta:
        proxy = True
        verbose_name = _("task")
        verbose_name_plural = _("tasks")
        default_permissions = ("view",)
        permissions: ClassVar[list[tuple[str, Any]]] = [
            ("run_celerytask", _("Can run tasks")),
        ]

    def __str__(self) -> str:
        return self.task_name

    @classmethod
    def of(cls, info: TaskInfo, *, may_run: bool, figures: Figures | None = None) -> Self:
        """Return a registered task as an object that is never saved; its key is its name."""
        task = cls(pk=info.name, task_name=info.name)
        task.info = info
        task.may_run = may_run
        task.figures = figures or Figures()
        return task


class TaskRunOutput(models.Model):
    """A piece of what a run printed or logged; append-only."""

    run = models.ForeignKey(
        TaskRunRecord, verbose_name=_("run"), on_delete=models.CASCADE, related_name="output"
    )
    seq = models.PositiveBigIntegerField(_("number"))
    stream = models.CharField(_("stream"), max_length=16)
    text = models.TextField(_("text"))

    class Meta:
        verbose_name = _("output of a run")
        verbose_name_plural = _("output of runs")
        ordering: ClassVar[list[str]] = ["run", "seq"]
        default_permissions = ()
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["run", "seq"], name="taskrunoutput_seq_uniq"),
        ]

    def __str__(self) -> str:
        return f"{self.run_id}/{self.seq}"


class OpenDependency(models.Model):
    """One of the runs that a WAITING run waits for; the row goes when that one has succeeded.

    ``depends_on`` keeps for ever what a run waited for; this is only what it still waits for.
    """

    #: The run that waits.
    dependent = models.ForeignKey(
        TaskRunRecord,
        verbose_name=_("dependent"),
        on_delete=models.CASCADE,
        related_name="open_dependencies",
        db_index=False,
    )
    #: The run that it waits for. It stays as long: else nobody would know how it ended.
    dependency = models.ForeignKey(
        TaskRunRecord,
        verbose_name=_("dependency"),
        on_delete=models.RESTRICT,
        related_name="open_dependents",
    )

    class Meta:
        verbose_name = _("open dependency")
        verbose_name_plural = _("open dependencies")
        default_permissions = ()
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["dependent", "dependency"], name="opendependency_once_uniq"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.dependent_id} waits for {self.dependency_id}"


class RecordingFault(models.Model):
    """How often a worker could not write to the journal; a row a worker."""

    #: The worker's name; "" for processes that are no workers.
    worker = models.CharField(_("worker"), max_length=255, unique=True)
    count = models.PositiveBigIntegerField(_("count"), default=0)
    #: The latest fault: the run, what happened, and when that was written down.
    task_id = models.CharField(_("task id"), max_length=255)
    error = models.TextField(_("error"))
    happened_at = models.DateTimeField(_("happened at"))

    class Meta:
        verbose_name = _("recording fault")
        verbose_name_plural = _("recording faults")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.worker}: {self.count}"


class Lease(models.Model):
    """The right to do something alone, until a moment; a row a name."""

    name = models.CharField(_("name"), max_length=100, primary_key=True)
    #: Who holds it: a token of its own for each holder.
    holder = models.UUIDField(_("holder"), null=True, blank=True)
    expires_at = models.DateTimeField(_("expires at"))
    #: Fencing: one more each time that somebody takes the lease.
    counter = models.PositiveBigIntegerField(_("counter"), default=0)
    #: What its holder leaves to the next one; plain JSON.
    data = models.JSONField(_("data"), null=True, blank=True)

    objects = LeaseQuerySet.as_manager()

    class Meta:
        verbose_name = _("lease")
        verbose_name_plural = _("leases")
        default_permissions = ()

    def __str__(self) -> str:
        return self.name
