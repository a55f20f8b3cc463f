"""The pages of the shop for its customers: each sees the own reports, and no other's."""

from typing import Any

from django.contrib.auth.mixins import LoginRequiredMixin
from django.db import transaction
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpResponse
from django.urls import reverse_lazy
from django.views.generic import CreateView, DetailView

from celery_admin_runner.contexts import RunContext
from celery_admin_runner.models import TaskRunRecord
from shop.models import Report
from shop.tasks import build_report

#: So many reports are listed, the newest first.
REPORTS_MAX = 20


class ReportListView(LoginRequiredMixin, CreateView):
    """The reports of a customer, those that are being built, and a button for another one."""

    model = Report
    fields = ("period",)
    template_name = "shop/reports.html"
    success_url = reverse_lazy("reports")

    def form_valid(self, form: ModelForm) -> HttpResponse:
        """Make the report, and let a worker fill it once that is committed."""
        user = self.request.user
        form.instance.owner = user
        with transaction.atomic():
            response = super().form_valid(form)
            # Who waits, for what, and how that is called on the page.
            context = RunContext(user=user, obj=self.object, label=str(self.object))
            build_report.apply_async_on_commit((self.object.pk,), run_context=context)
        return response

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add the reports but for those that are being built: the page shows their runs."""
        user = self.request.user
        runs = TaskRunRecord.objects.for_user(user).of_task(build_report.name).unfinished()
        # Staff can run the task from the admin, and then it is about nothing.
        building = runs.exclude(object_id="").values_list("object_id", flat=True)
        reports = Report.objects.filter(owner=user).exclude(pk__in=list(building))
        return super().get_context_data(reports=reports[:REPORTS_MAX], **kwargs)


class ReportView(LoginRequiredMixin, DetailView):
    """A report; as long as it is not there, the run that builds it."""

    template_name = "shop/report.html"

    def get_queryset(self) -> QuerySet[Report]:
        """Return the customer's own: of the others nobody is told whether they exist."""
        return Report.objects.filter(owner=self.request.user)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add the latest run that was to build it."""
        runs = TaskRunRecord.objects.for_user(self.request.user).for_object(self.object)
        return super().get_context_data(run=runs.order_by("-created_at").first(), **kwargs)
