"""Pages with the tags of ``task_runs``, as a site would have them; and their URLs."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import path

from celery_admin_runner.models import TaskRunRecord

#: Around whatever a test shows.
PAGE = """{{% load task_runs %}}<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Runs</title>
<meta name="viewport" content="width=device-width"></head>
<body><main><h1>Reports</h1>{body}</main></body>
</html>"""
LIST = "{% task_runs %}"
#: All tags there are, several times.
MANY = (
    '{% task_runs %}{% task_runs title="The same once more" %}'
    "<table>{% for run in runs %}<tr><td>{% task_run run %}</td></tr>{% endfor %}</table>"
)
SINGLES = "{% for run in runs %}<p>{% task_run run %}</p>{% endfor %}"


def render(request: HttpRequest, body: str) -> HttpResponse:
    """Render a page with these tags; ``runs`` are all there are, the oldest first."""
    template = engines["django"].from_string(PAGE.format(body=body))
    return HttpResponse(template.render({"runs": TaskRunRecord.objects.order_by("pk")}, request))


@login_required
def list_page(request: HttpRequest) -> HttpResponse:
    """Show the list."""
    return render(request, LIST)


@login_required
def many_page(request: HttpRequest) -> HttpResponse:
    """Show two lists, and each run by itself."""
    return render(request, MANY)


@login_required
def singles_page(request: HttpRequest) -> HttpResponse:
    """Show each run by itself, in no list."""
    return render(request, SINGLES)


urlpatterns = [
    path("list/", list_page),
    path("many/", many_page),
    path("singles/", singles_page),
]
