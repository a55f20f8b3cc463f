"""The translations: whole, compiled, and shown."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import timedelta
from gettext import GNUTranslations
from pathlib import Path
from string import Formatter

import pytest
from django.apps import apps
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.translation.template import templatize

from celery_admin_runner import dispatch, tracking
from celery_admin_runner.dependencies import SKIPPED
from celery_admin_runner.models import NOT_CONFIRMED, TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_superuser
from tests.models import Report

LOCALE = Path(apps.get_app_config("celery_admin_runner").path) / "locale"
CATALOGUES = sorted(LOCALE.glob("*/LC_MESSAGES/django.po"))
#: A line of a catalogue that begins a text, or goes on with it.
LINE = re.compile(r'(?:(?P<key>msgctxt|msgid|msgid_plural|msgstr(?:\[\d\])?) )?(?P<text>".*")')
#: A question to gettext, in what Django makes of a template.
ASKED = re.compile(r"\b(?:_|n?p?gettext)\((?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^()'\"])*\)")
PERCENT = re.compile(r"%\(\w+\)[a-z]")
#: Between a context and its text, as gettext joins them in a compiled catalogue.
CONTEXT_END = "\x04"


def entries(path: Path) -> Iterator[dict[str, str]]:
    """Yield the texts of each entry by their keywords, the header left out."""
    for block in path.read_text(encoding="utf-8").split("\n\n")[1:]:
        entry: dict[str, str] = {}
        key = ""
        for found in filter(None, map(LINE.fullmatch, block.splitlines())):
            key = found["key"] or key
            entry[key] = entry.get(key, "") + ast.literal_eval(found["text"])
        yield entry


def translations(entry: dict[str, str]) -> list[str]:
    return [text for key, text in entry.items() if key.startswith("msgstr")]


def placeholders(text: str) -> set[str]:
    braces = set() if "%(" in text else {name for _, name, _, _ in Formatter().parse(text) if name}
    return set(PERCENT.findall(text)) | braces


def compiled(catalogue: Path) -> GNUTranslations:
    with catalogue.with_suffix(".mo").open("rb") as file:
        return GNUTranslations(file)


def message_id(entry: dict[str, str]) -> str:
    return CONTEXT_END.join(filter(None, [entry.get("msgctxt"), entry["msgid"]]))


def language(path: Path) -> str:
    return path.parts[-3]


def translatable(package: Path) -> set[str]:
    """Return every text that the modules and templates of the package ask gettext for."""
    sources = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    for path in package.rglob("*.html"):
        asked = ASKED.findall(templatize(path.read_text(encoding="utf-8")))
        sources.append("\n".join(asked))
    calls = (node for source in sources for node in ast.walk(ast.parse(source)))
    return {text for node in calls if isinstance(node, ast.Call) for text in asked_for(node)}


def asked_for(call: ast.Call) -> Iterator[str]:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    texts = [item.value for item in call.args if isinstance(item, ast.Constant)]
    if re.fullmatch(r"_|u?n?gettext(_lazy)?", name):
        yield texts[0]
    elif re.fullmatch(r"n?pgettext(_lazy)?", name):
        yield CONTEXT_END.join(texts[:2])


of_each_catalogue = pytest.mark.parametrize("catalogue", CATALOGUES, ids=language)


#: The labels of the states, as German users read them.
GERMAN_STATES = {
    State.UNSENT: "Nicht gesendet",
    State.SCHEDULED: "Geplant",
    State.WAITING: "Wartet",
    State.PENDING: "Eingereiht",
    State.STARTED: "Läuft",
    State.RETRY: "Neuer Versuch",
    State.CANCELLING: "Wird abgebrochen",
    State.SUCCESS: "Erfolgreich",
    State.FAILURE: "Fehlgeschlagen",
    State.REVOKED: "Abgebrochen",
    State.EXPIRED: "Abgelaufen",
    State.IGNORED: "Übersprungen",
    State.LOST: "Verloren",
}


@pytest.fixture
def german_client(settings: object) -> Client:
    settings.LANGUAGE_CODE = "de"
    client = Client()
    client.force_login(make_superuser())
    return client


def page(client: Client, name: str, *args: object, **query: str) -> str:
    response = client.get(reverse(f"admin:celery_admin_runner_{name}", args=args), query)
    assert response.status_code == 200
    return str(response.content, "utf-8")


def test_there_is_a_german_catalogue() -> None:
    assert "de" in map(language, CATALOGUES)


@of_each_catalogue
def test_no_text_is_empty_fuzzy_or_given_up(catalogue: Path) -> None:
    found = list(entries(catalogue))

    assert len(found) > 200
    assert [entry for entry in found if not translations(entry) or "" in translations(entry)] == []
    assert not re.search(r"^#(,.*fuzzy|~)", catalogue.read_text(encoding="utf-8"), re.MULTILINE)


@of_each_catalogue
def test_every_text_of_the_package_is_in_the_catalogue_and_no_other(catalogue: Path) -> None:
    known = {message_id(entry) for entry in entries(catalogue)}

    assert known == translatable(LOCALE.parent)


@of_each_catalogue
def test_a_translation_has_the_placeholders_of_its_text(catalogue: Path) -> None:
    different = [
        entry["msgid"]
        for entry in entries(catalogue)
        for text in translations(entry)
        if placeholders(text) != placeholders(entry.get("msgid_plural", entry["msgid"]))
        and placeholders(text) != placeholders(entry["msgid"])
    ]

    assert different == []


@of_each_catalogue
def test_the_compiled_catalogue_is_that_of_the_source(catalogue: Path) -> None:
    answers = compiled(catalogue)._catalog

    expected: dict[object, str] = {}
    for entry in entries(catalogue):
        if "msgid_plural" in entry:
            texts = enumerate(translations(entry))
            expected |= {(message_id(entry), number): text for number, text in texts}
        else:
            expected[message_id(entry)] = entry["msgstr"]

    assert {key: text for key, text in answers.items() if key != ""} == expected


@of_each_catalogue
def test_a_number_chooses_the_plural(catalogue: Path) -> None:
    plurals = [entry for entry in entries(catalogue) if "msgid_plural" in entry]
    answers = compiled(catalogue)

    chosen = [
        [answers.ngettext(entry["msgid"], entry["msgid_plural"], number) for number in (1, 2)]
        for entry in plurals
    ]

    assert plurals
    assert chosen == [translations(entry) for entry in plurals]


@pytest.mark.django_db
def test_the_task_list_is_german(german_client: Client) -> None:
    make_run(state=State.FAILURE)

    # Of the many tasks of the tests a page shows only some.
    html = page(german_client, "celerytask_changelist", q="tests.tasks.add")

    for text in (
        "Aufgabe zum Ausführen auswählen",
        "Letzter Lauf",
        "Fehlschläge in 7 Tagen",
        "Nach Ausführbarkeit",
        "Fehlgeschlagen",
        "tests.tasks.add ausführen",
        "Ausgewählte Aufgaben ausführen",
    ):
        assert text in html


@pytest.mark.django_db
def test_the_page_of_a_task_is_german(german_client: Client) -> None:
    make_run(state=State.STARTED)

    html = page(german_client, "celerytask_run", "tests.tasks.add")

    for text in ("Letzte Läufe", "Frühester Start", "Warteschlange", "Formular", "Läuft"):
        assert text in html
    assert 'value="Aufgabe ausführen"' in html


@pytest.mark.django_db
def test_what_is_wrong_with_an_argument_is_said_in_german(german_client: Client) -> None:
    address = reverse("admin:celery_admin_runner_celerytask_run", args=["tests.tasks.add"])

    posted = {"mode": "json", "json-args": "{", "json-kwargs": "[]"}

    html = german_client.post(address, posted).content.decode()

    assert "Bitte geben Sie gültiges JSON ein" in html
    assert "Bitte geben Sie ein JSON-Objekt ein" in html


@pytest.mark.django_db
@pytest.mark.parametrize("state", State)
def test_the_page_of_a_run_is_german(german_client: Client, state: State) -> None:
    run = make_run(state=state, args=[1, 2], reason="Monatsende")

    html = page(german_client, "taskrunrecord_change", run.pk)

    for text in ("Verlauf und Ergebnis", "angefordert von", "Argumente", "Wer und warum"):
        assert text in html
    assert f">{GERMAN_STATES[state]}</span>" in html


@pytest.mark.django_db
def test_the_journal_is_german(german_client: Client) -> None:
    make_run(state=State.SUCCESS)

    html = page(german_client, "taskrunrecord_changelist")

    for text in ("Erfolgreich", "Nach Status", "Nach Erstellung", "Nicht beendet", "Dauer"):
        assert text in html
    assert "Ausgewählte Aufgabenläufe exportieren" in html


@pytest.mark.django_db
def test_the_export_page_is_german(german_client: Client) -> None:
    html = page(german_client, "taskrunrecord_export")

    assert "Exportiert werden alle Läufe, die Sie sehen dürfen." in html
    assert "Spalten" in html


def scheduled() -> TaskRunRecord:
    later = timezone.now() + timedelta(hours=3, minutes=1, seconds=30)
    return make_run(state=State.SCHEDULED, eta=later, due_at=later)


def choose(client: Client, action: str, *runs: TaskRunRecord) -> str:
    """Choose an action of the journal, and return the page that asks."""
    data = {"action": action, "_selected_action": [run.pk for run in runs]}
    address = reverse("admin:celery_admin_runner_taskrunrecord_changelist")
    return client.post(address, data, follow=True).text


@pytest.mark.django_db
def test_a_scheduled_run_says_in_german_when_it_starts(german_client: Client) -> None:
    html = page(german_client, "taskrunrecord_change", scheduled().pk)

    assert "Frühester Start: " in html
    assert ", in 3 h 1 min." in html
    assert ">Sofort ausführen</button>" in html
    assert ">Verschieben</a>" in html


@pytest.mark.django_db
def test_a_run_is_moved_in_german(german_client: Client) -> None:
    run = scheduled()
    address = reverse("admin:celery_admin_runner_taskrunrecord_move", args=[run.pk])

    shown = german_client.get(address).text
    refused = german_client.post(address, {"eta_0": "01.07.2020", "eta_1": "12:00"}).text

    assert "In der Zeitzone " in shown
    assert ">Lauf verschieben</button>" in shown
    assert "Zum sofortigen Start wählen Sie „Sofort ausführen“." in refused


@pytest.mark.django_db
def test_several_runs_are_moved_and_run_now_in_german(german_client: Client) -> None:
    runs = scheduled(), scheduled(), make_run(state=State.WAITING), make_run(state=State.LOST)

    moved = choose(german_client, "move_selected", *runs)
    sent = choose(german_client, "run_selected_now", *runs)

    assert "Diese 3 Läufe werden verschoben" in moved
    assert "Dieser Lauf bleibt, wie er ist" in moved
    assert "Dieser Lauf ist beendet: „Verloren“." in moved
    assert ">Diese 3 verschieben</button>" in moved
    assert "Diese 2 Läufe werden sofort gesendet" in sent
    assert "Er wartet auf andere Läufe: Er startet, wenn alle erfolgreich waren." in sent
    assert ">Ja, diese 2 sofort ausführen</button>" in sent


@pytest.mark.django_db
def test_what_waits_and_what_it_waits_for_is_said_in_german(german_client: Client) -> None:
    run, other = make_run(state=State.WAITING), make_run(state=State.STARTED)
    run.depends_on.add(other)

    waiting = page(german_client, "taskrunrecord_change", run.pk)
    awaited = page(german_client, "taskrunrecord_change", other.pk)

    assert "Wartet auf:" in waiting
    assert "Er startet, wenn alle Läufe erfolgreich waren, auf die er wartet." in waiting
    assert "Vollständige Ausgabe, zuerst die der Läufe, auf die er gewartet hat" in waiting
    assert "Darauf warten:" in awaited


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("state", "kept", "shown"),
    [
        (State.IGNORED, SKIPPED[State.LOST], "endete mit dem Status „Verloren“."),
        (State.REVOKED, dispatch.CANCELLED, "Vor dem Senden abgebrochen."),
        (State.REVOKED, tracking.TERMINATED, "Während der Ausführung gewaltsam beendet."),
        (State.EXPIRED, dispatch.EXPIRED, "Vor dem Senden abgelaufen."),
    ],
)
def test_why_a_run_was_not_begun_is_said_in_german(
    german_client: Client, state: State, kept: str, shown: str
) -> None:
    run = make_run(state=state, exception=kept)

    html = page(german_client, "taskrunrecord_change", run.pk)

    assert shown in html
    assert kept not in html


@pytest.mark.django_db
def test_the_page_that_asks_before_a_run_is_sent_again_is_german(german_client: Client) -> None:
    run = make_run(state=State.UNSENT, args=[1], publish_error=f"{NOT_CONFIRMED}TimeoutError")
    address = reverse("admin:celery_admin_runner_taskrunrecord_send_again", args=[run.pk])

    html = german_client.post(address).text

    for text in (
        "Der Broker hat nicht bestätigt, dass er diesen Lauf angenommen hat",
        "Wenn Sie ihn erneut senden, läuft er vielleicht zweimal.",
        "Das wird gesendet",
        "Ja, erneut senden",
    ):
        assert text in html


@pytest.mark.django_db
def test_the_journal_of_what_is_due_is_german(german_client: Client) -> None:
    scheduled()
    address = reverse("admin:celery_admin_runner_taskrunrecord_changelist")

    html = german_client.get(address, {"due": "day"}).text

    for text in (
        "Nach frühestem Start",
        "Fällig und noch nicht gesendet",
        "Innerhalb von 24 Stunden",
        "Frühester Start",
        "Geplant, vielleicht schon gesendet",
        "Ausgewählte geplante Läufe verschieben",
        "Ausgewählte geplante Läufe sofort ausführen",
    ):
        assert text in html


@pytest.mark.django_db
@pytest.mark.urls("tests.test_admin_history")
def test_the_pages_of_an_object_are_german(german_client: Client) -> None:
    report = Report.objects.create(title="Juni")
    build = "tests.model_task_models.Report.build"
    chosen = {"action": "run_task_for_selected", "_selected_action": report.pk}

    runs = german_client.get(reverse("shop:tests_report_runs", args=[report.pk])).text
    asked = german_client.get(reverse("shop:tests_report_run_task", args=[report.pk, build])).text
    address = reverse("shop:tests_report_changelist")
    selected = german_client.post(address, chosen, follow=True).text

    assert "<h1>Läufe</h1>" in runs
    assert "Zu diesem Objekt gibt es noch keinen Lauf, den Sie sehen können." in runs
    assert "Davor werden ausgeführt, wenn sie nicht schon erfolgreich waren: Load" in asked
    assert "Welche Aufgabe möchten Sie für dieses Objekt ausführen?" in selected
