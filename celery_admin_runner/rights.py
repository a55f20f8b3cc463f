"""What a user may do with tasks and runs: permissions, the rules of tasks, visibility."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.registry import Rule, TaskInfo

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

RUN_PERMISSION = "celery_admin_runner.run_celerytask"
CANCEL_PERMISSION = "celery_admin_runner.cancel_taskrunrecord"
RETRY_PERMISSION = "celery_admin_runner.retry_taskrunrecord"


class Rights:
    """The rights of a user; of trusted code, which may do everything, if ``user`` is None."""

    def __init__(self, user: AnyUser | None) -> None:
        self.user = user

    def may_run(self, info: TaskInfo) -> bool:
        """Tell whether the task is runnable, and this user may run it."""
        return info.is_runnable and (self.user is None or self._is_allowed(self.user, info.rule))

    def may_cancel(self, run: TaskRunRecord) -> bool:
        """Tell whether this user may cancel this run: has the permission, and may see it."""
        return self._may_touch(run, CANCEL_PERMISSION)

    def may_retry(self, run: TaskRunRecord) -> bool:
        """Tell whether this user may run this run again, if its task can be run."""
        return self._may_touch(run, RETRY_PERMISSION)

    def may_see(self, run: TaskRunRecord) -> bool:
        """Tell whether this user may see this run."""
        user = self.user
        if user is None:
            return True
        return TaskRunRecord.objects.visible_to(user).filter(pk=run.pk).exists()

    def _may_touch(self, run: TaskRunRecord, permission: str) -> bool:
        user = self.user
        if user is not None and not (user.is_active and user.has_perm(permission)):
            return False
        return self.may_see(run)

    def _is_allowed(self, user: AnyUser, rule: Rule) -> bool:
        """Tell whether ``user`` has the permissions and the group that running asks for."""
        if not user.is_active or not user.has_perm(RUN_PERMISSION):
            return False
        if rule.permission and not user.has_perm(rule.permission):
            return False
        is_member = not rule.groups or not self._group_names.isdisjoint(rule.groups)
        return is_member or user.is_superuser

    @cached_property
    def _group_names(self) -> frozenset[str]:
        """The names of the user's groups, asked for once."""
        if self.user is None or self.user.pk is None:
            return frozenset()
        return frozenset(self.user.groups.values_list("name", flat=True))
