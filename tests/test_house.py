"""The habits of the house: what holds for every module, page and text of the package."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.management import call_command
from django.dispatch import Signal
from django.test import RequestFactory

import celery_admin_runner
from celery_admin_runner import signals
from celery_admin_runner.conf import setting_types

NAME = "celery_admin_runner"
PACKAGE = Path(celery_admin_runner.__file__).parent
README = Path(__file__).parent.parent / "README.rst"

#: Modules and sub-packages from the bottom up. Each imports only from lower lines, or from
#: its own sub-package.
LAYERS = (
    {"conf", "states", "exceptions", "signals", "durations", "attempts", "headers"}
    | {"moments"},
    {"answers", "contexts", "queues", "handles", "changes", "deadlocks", "skipping"}
    | {"alternatives", "of_each", "sparse"},
    {"base"},
    {"annotations", "ansi", "capture", "encoding", "forking", "pulse", "redaction", "registry"}
    | {"querysets", "unattended", "figures"},
    {"parameters", "models"},
    {"cells"},
    {"copying"},
    {"binding", "model_keys", "wire", "messages", "recording", "deletion", "export", "broker"}
    | {"command_lines", "insertion"},
    {"retention", "statements"},
    {"calls", "archive", "late", "startup", "results", "dispatch", "options"}
    | {"clearing", "rights", "scheduling", "dependencies", "leases"},
    {"tracking", "control", "output", "progress", "storing", "leadership", "unique", "ignoring"}
    | {"batches"},
    {"runs", "publishing", "killing", "cancelling", "periodic", "beat_database", "object_tasks"}
    | {"sameness"},
    {"orders"},
    {"runner", "outcomes", "task_meta", "holding", "beat"},
    {"forms", "receivers", "backends", "dispatcher", "invocations", "commands"},
    {"model_tasks"},
    {"live"},
    {"templatetags"},
    {"admin", "management", "checks", "task_checks", "tasks", "bootsteps", "announcing"},
    {"apps"},
)
#: Written by makemigrations; Django alone imports them.
OUTSIDE_THE_LAYERS = {"migrations"}
#: Where a module is imported when Django is ready, and not before.
LATE_IMPORTS = {"apps.py"}
#: The top-level modules of what setup.cfg says the package needs, and of what comes with
#: it for certain: asgiref with Django, kombu with celery, tablib with django-import-export.
DEPENDENCIES = {
    "annotated_types",
    "asgiref",
    "celery",
    "django",
    "django_celery_results",
    "docstring_parser",
    "import_export",
    "kombu",
    "pydantic",
    "pydantic_core",
    "tablib",
    "typing_extensions",
}
#: The files that import what an extra brings: they themselves are imported only with it.
EXTRAS = {
    "admin/beat.py": {"django_celery_beat"},
    "beat_database.py": {"django_celery_beat"},
    "live/consumers.py": {"channels"},
    "live/handshakes.py": {"channels"},
    "live/pushing.py": {"channels"},
    "live/routing.py": {"channels"},
}


def sources() -> list[Path]:
    """Return the package's modules, without its migrations."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts]


def short_name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def each_source(*, but: Collection[str] = ()) -> pytest.MarkDecorator:
    """Run a test for each module."""
    paths = [path for path in sources() if short_name(path) not in but]
    return pytest.mark.parametrize("path", paths, ids=short_name)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def nodes_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is run: everything but what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not is_for_types_only(child):
            yield child
            yield from nodes_at_run_time(child)


def imported_names(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the full name of each thing that is imported."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    """Return the dotted name of a module below the package: ``admin.tasks``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def own_imports(path: Path) -> set[str]:
    """Return which modules of the package a module imports at run time."""
    modules = {module_name(source) for source in sources()} - {""}
    found = set()
    for name in imported_names(nodes_at_run_time(tree_of(path))):
        if name.startswith(f"{NAME}."):
            below = name.removeprefix(f"{NAME}.")
            found.add(below if below in modules else below.rpartition(".")[0])
    return found - {""}


def layer_of(module: str) -> int:
    top = module.partition(".")[0]
    return next(number for number, names in enumerate(LAYERS) if top in names)


def test_every_module_has_its_layer() -> None:
    tops = {module_name(path).partition(".")[0] for path in sources()} - {""}

    placed = set().union(*LAYERS)

    assert tops - OUTSIDE_THE_LAYERS <= placed


@each_source(but={"__init__.py"})
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    module = module_name(path)

    wrong = {
        name
        for name in own_imports(path)
        if name.partition(".")[0] != module.partition(".")[0]
        and layer_of(name) >= layer_of(module)
    }

    assert wrong == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module_name(path): own_imports(path) for path in sources()}

    order = list(graphlib.TopologicalSorter(graph).static_order())

    assert set(graph) <= set(order)


@each_source(but=LATE_IMPORTS)
def test_imports_stand_at_the_top_of_the_file(path: Path) -> None:
    late = [
        f"line {inner.lineno}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Try)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]

    assert late == []


@each_source()
def test_imports_are_absolute(path: Path) -> None:
    relative = [
        f"line {node.lineno}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]

    assert relative == []


@each_source()
def test_a_module_imports_only_what_the_package_depends_on(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported_names(ast.walk(tree_of(path)))}

    known = DEPENDENCIES | EXTRAS.get(short_name(path), set())
    others = tops - known - set(sys.stdlib_module_names) - {NAME}

    assert others == set()


@each_source()
def test_an_except_names_its_exception(path: Path) -> None:
    broad = [
        f"line {node.lineno}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or {"Exception", "BaseException"}
            & {inner.id for inner in ast.walk(node.type) if isinstance(inner, ast.Name)}
        )
    ]

    assert broad == []


@each_source()
def test_html_is_never_marked_safe(path: Path) -> None:
    called = {
        ast.unparse(node.func).rpartition(".")[2]
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
    }

    assert called & {"mark_safe", "SafeString", "SafeText"} == set()


@each_source()
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = tree_of(path)
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]

    assert bare == []
    assert ast.get_docstring(tree) is not None or not tree.body


@pytest.mark.parametrize(
    "path",
    sorted((PACKAGE / "templates").rglob("*.html")),
    ids=lambda path: path.relative_to(PACKAGE / "templates").as_posix(),
)
def test_a_template_has_no_inline_style_or_script(path: Path) -> None:
    text = path.read_text()

    found = re.findall(
        r"<style|\sstyle=|<script(?![^>]*(?:\ssrc=|type=\"application/json\"))|\son[a-z]+=|\|safe\b",
        text,
    )

    assert found == []


def function_of(action: object) -> object:
    """Return what an action calls; before Django 6.1 an action is a tuple."""
    return action[0] if isinstance(action, tuple) else action.func


@pytest.mark.django_db
def test_every_action_of_the_admin_names_its_permission() -> None:
    request = RequestFactory().get("/")
    request.user = User(username="root", is_superuser=True, is_staff=True, is_active=True)
    ours = [
        model_admin
        for model, model_admin in admin.site._registry.items()
        if model._meta.app_label == NAME
    ]

    open_to_all = [
        f"{type(model_admin).__name__}.{name}"
        for model_admin in ours
        for name, action in model_admin.get_actions(request).items()
        if not getattr(function_of(action), "allowed_permissions", ())
    ]

    assert ours
    assert open_to_all == []


@pytest.mark.django_db
def test_the_migrations_are_complete() -> None:
    call_command("makemigrations", NAME, check_changes=True, dry_run=True, verbosity=0)


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text()


@pytest.mark.parametrize("name", sorted(setting_types()))
def test_the_readme_explains_each_setting(readme: str, name: str) -> None:
    assert f"``{name}``" in readme


def permissions() -> list[str]:
    """Return the code names of all permissions of the package's models."""
    return sorted(
        codename
        for model in apps.get_app_config(NAME).get_models()
        for codename in (
            *(f"{action}_{model._meta.model_name}" for action in model._meta.default_permissions),
            *(codename for codename, _ in model._meta.permissions),
        )
    )


@pytest.mark.parametrize("codename", permissions())
def test_the_readme_explains_each_permission(readme: str, codename: str) -> None:
    assert f"``{codename}``" in readme


@pytest.mark.parametrize(
    "name", sorted(name for name, value in vars(signals).items() if isinstance(value, Signal))
)
def test_the_readme_explains_each_signal(readme: str, name: str) -> None:
    assert name in readme


@pytest.mark.parametrize(
    "name",
    sorted(
        path.stem
        for path in (PACKAGE / "management" / "commands").glob("*.py")
        if not path.stem.startswith("_")
    ),
)
def test_the_readme_explains_each_command(readme: str, name: str) -> None:
    assert f"manage.py {name}" in readme


def check_ids() -> list[str]:
    """Return the ids of the package's system checks."""
    texts = (path.read_text() for path in sources())
    return sorted({found for text in texts for found in re.findall(rf"{NAME}\.([EWI]\d+)", text)})


@pytest.mark.parametrize("check_id", check_ids())
def test_the_readme_explains_each_check(readme: str, check_id: str) -> None:
    assert f"``{check_id}``" in readme


@pytest.mark.parametrize("name", ["example_project/manage.py demo", "-m pytest"])
def test_the_readme_has_one_command_line_for_each_purpose(readme: str, name: str) -> None:
    commands = [line for line in readme.splitlines() if "python3 -m venv" in line]

    assert len([line for line in commands if name in line]) == 1
    assert len(commands) == 2
