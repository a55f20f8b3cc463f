"""Parsers of argparse that commands seldom have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.core.management import BaseCommand, CommandParser
from django.utils.translation import gettext_lazy, override

from celery_admin_runner.command_lines.inputs import DashedValue
from celery_admin_runner.command_lines.reading import CommandLine, read_command_line, unreadable
from celery_admin_runner.command_lines.texts import joined
from celery_admin_runner.parameters import Default
from celery_admin_runner.redaction import MASK

Define = Callable[[CommandParser], Any]


def command_of(define: Define) -> BaseCommand:
    class Command(BaseCommand):
        def add_arguments(self, parser: CommandParser) -> None:
            define(parser)

    return Command()


def line_of(define: Define) -> CommandLine:
    """Return what can be given to a command whose parser ``define`` fills."""
    return read_command_line(command_of(define), "try")


def parsed(define: Define, **values: Any) -> dict[str, Any]:
    """Return what the parser makes of the words for these values, as the command gets it."""
    words = line_of(define).words(values)
    return vars(command_of(define).create_parser("manage.py", "try").parse_args(words))


def only(define: Define) -> Any:
    """Return the one parameter that the command has of its own."""
    [*own, verbosity] = line_of(define).signature.parameters
    assert verbosity.name == "verbosity"
    [parameter] = own
    return parameter


class Colour(Enum):
    RED = "red"


class Whatever:
    """Choices that can't be listed."""

    def __contains__(self, value: object) -> bool:
        return value == "yes"


class Note(argparse.Action):
    """An action of a project's own."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, ("noted", values))


def test_flags_with_one_destination_are_a_yes_or_no() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--mail", action="store_true", dest="mail")
        parser.add_argument("--no-mail", action="store_false", dest="mail")

    parameter = only(define)

    assert (parameter.annotation, parameter.default) == (bool, False)
    assert parsed(define, mail=True)["mail"] is True
    assert parsed(define, mail=False)["mail"] is False


def test_flags_that_may_be_left_out_are_a_yes_a_no_or_none() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--mail", action="store_true", dest="mail", default=None)
        parser.add_argument("--no-mail", action="store_false", dest="mail", default=None)

    parameter = only(define)

    assert parameter.annotation == bool | None
    assert parameter.default is None
    assert parsed(define, mail=None)["mail"] is None


@pytest.mark.parametrize("default", [None, argparse.SUPPRESS])
def test_a_flag_that_is_not_given_is_the_other_answer(default: Any) -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--quick", action="store_true", default=default)

    parameter = only(define)

    assert (parameter.annotation, parameter.default) == (bool, False)
    assert parsed(define, quick=True)["quick"] is True
    assert not parsed(define, quick=False).get("quick")


def test_a_flag_that_is_required_has_one_answer() -> None:
    found = only(lambda parser: parser.add_argument("--yes", action="store_true", required=True))

    assert (found.annotation_text, found.is_required) == ("Literal[True]", True)
    with pytest.raises(ValueError, match="True"):
        found.adapter.validate_python(False)


def test_a_flag_that_says_no_needs_no_help_text() -> None:
    found = only(lambda parser: parser.add_argument("--no-mail", dest="m", action="store_false"))

    assert found.help_text == "No means --no-mail."


def test_a_flag_that_changes_nothing_has_one_answer() -> None:
    parameter = only(lambda parser: parser.add_argument("-q", action="store_true", default=True))

    assert parameter.annotation_text == "Literal[True]"


@pytest.mark.parametrize("default", [None, Colour.RED])
def test_a_constant_that_cannot_be_named_is_a_flag(default: Any) -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--red", action="store_const", const=Colour.RED, default=default)

    assert only(define).annotation is bool
    assert parsed(define, red=True)["red"] is Colour.RED
    assert parsed(define, red=False)["red"] is default


def test_a_default_that_cannot_be_named_makes_of_a_constant_a_flag() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--red", action="store_const", const="red", default=Colour.RED)

    assert only(define).annotation is bool
    assert parsed(define, red=True)["red"] == "red"


def test_constants_whose_default_cannot_be_named_are_a_choice() -> None:
    def define(parser: CommandParser) -> None:
        for text in ("a", "b"):
            parser.add_argument(
                f"--{text}", action="store_const", const=text, dest="kind", default=Colour.RED
            )

    parameter = only(define)

    assert parameter.annotation_text == "Literal['a', 'b']"
    assert parameter.default is Default.COMPUTED
    assert parsed(define, kind="b")["kind"] == "b"
    assert parsed(define)["kind"] is Colour.RED


def test_another_option_with_the_same_destination_has_its_own_name() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--format", default="csv")
        parser.add_argument("--json", action="store_const", const="json", dest="format")
        parser.add_argument("--verbose-json", dest="json")

    signature = line_of(define).signature

    assert [item.name for item in signature.parameters] == [
        "format",
        "json_",
        "json",
        "verbosity",
    ]
    assert parsed(define, json_="json")["format"] == "json"
    assert parsed(define, json="x") | {"format": "csv"} == parsed(define, json="x")


def test_constants_that_are_appended_are_flags() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--a", action="append_const", const="a", dest="all")
        parser.add_argument("--b", action="append_const", const="b", dest="all")

    assert parsed(define, all=True, b=True)["all"] == ["a", "b"]


def test_an_action_of_the_projects_own_gets_its_value() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--note", action=Note)
        parser.add_argument("--bare", action=Note, nargs=0)

    assert parsed(define, note="-x", bare=True)["note"] == ("noted", "-x")
    assert parsed(define, bare=True)["bare"] == ("noted", [])


def test_what_is_required_has_no_default() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--colour", action=argparse.BooleanOptionalAction, required=True)
        parser.add_argument("--tag", action="append", required=True)
        parser.add_argument("-n", action="count", required=True, default=1)
        parser.add_argument("--hidden", help=argparse.SUPPRESS, required=True)

    parameters = line_of(define).signature.parameters[:-1]

    assert [item.annotation_text for item in parameters] == ["bool", "list[str]", "int", "str"]
    assert all(item.is_required for item in parameters)
    received = parsed(define, colour=False, tag=["x"], n=2, hidden="h")
    assert (received["colour"], received["tag"], received["n"]) == (False, ["x"], 2)


def test_required_arguments_after_optional_ones_go_by_name() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("first", nargs="?")
        parser.add_argument("second")

    line = line_of(define)

    assert [(item.name, item.kind.name) for item in line.signature.parameters[:2]] == [
        ("first", "POSITIONAL_OR_KEYWORD"),
        ("second", "KEYWORD_ONLY"),
    ]
    assert parsed(define, second="x")["second"] == "x"
    assert line.problems({"second": "x"}) == {}


def test_the_rest_of_the_line_is_a_list() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("rest", nargs=argparse.REMAINDER)

    assert line_of(define).signature["rest"].default == []
    assert parsed(define, name="x", rest=["--all", "y"])["rest"] == ["--all", "y"]


def test_values_extend_a_list_as_many_at_once_as_the_option_takes() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--box", action="extend", nargs=2, type=int)

    assert parsed(define, box=[1, 2])["box"] == [1, 2]
    assert parsed(define, box=[])["box"] is None


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"name": "--hidden=x", "rest": ["y"]}, "name"),
        ({"name": "x", "rest": ["--hidden=x"]}, None),
    ],
)
def test_no_value_before_the_rest_of_the_line_is_an_option(
    values: dict[str, Any], refused: str | None
) -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("rest", nargs=argparse.REMAINDER)
        parser.add_argument("--hidden", help=argparse.SUPPRESS)

    assert list(line_of(define).problems(values)) == [name for name in [refused] if name]
    if refused is None:
        assert parsed(define, **values)["hidden"] is None


def test_the_rest_of_the_line_begins_with_no_option() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("rest", nargs=argparse.REMAINDER)

    [text] = line_of(define).problems({"rest": ["--force-color"]})["rest"]

    assert text == "It can't begin with a dash: the command would take it for an option."
    assert line_of(define).problems({"rest": ["x", "--force-color"]}) == {}


def test_an_option_with_a_list_takes_no_value_of_what_follows() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("rest", nargs=argparse.REMAINDER)
        parser.add_argument("--tags", nargs="*")
        parser.add_argument("-x", dest="hidden", help=argparse.SUPPRESS)

    found = parsed(define, tags=["a", "b"], name="c", rest=["-x", "d", "e"])

    assert (found["tags"], found["name"], found["rest"]) == (["a", "b"], "c", ["-x", "d", "e"])
    assert found["hidden"] is None


def test_no_value_is_the_end_of_the_options() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("first")
        parser.add_argument("second")
        parser.add_argument("--third")

    values = {"first": "--", "second": "--", "third": "--"}

    assert list(line_of(define).problems(values)) == ["first", "second", "third"]
    assert parsed(define, first="-", second="---", third="-")["second"] == "---"


def test_no_value_names_a_file_with_more_words() -> None:
    class Command(BaseCommand):
        def create_parser(self, *args: Any, **kwargs: Any) -> CommandParser:
            return super().create_parser(*args, fromfile_prefix_chars="@", **kwargs)

        def add_arguments(self, parser: CommandParser) -> None:
            parser.add_argument("name")
            parser.add_argument("--tags", nargs="*")
            parser.add_argument("--tag")

    line = read_command_line(Command(), "try")

    found = line.problems({"name": "@/etc/passwd", "tags": ["a", "@/etc/passwd"], "tag": "@a"})

    assert sorted(found) == ["name", "tags"]
    assert "would read a file" in found["name"][0]


def test_an_option_is_not_given_a_thousand_million_times() -> None:
    found = only(lambda parser: parser.add_argument("-d", action="count", default=1))

    assert found.adapter.validate_python(101) == 101
    with pytest.raises(ValueError, match="less than or equal to 101"):
        found.adapter.validate_python(10**9)


def test_a_short_option_is_not_smuggled_in_with_a_space() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--names", nargs="+")
        parser.add_argument("-x", dest="hidden", help=argparse.SUPPRESS)

    with pytest.raises(DashedValue):
        line_of(define).words({"names": ["a", "-x of another"]})


@pytest.mark.parametrize("value", ["-x", "--long", "-x=1 2"])
def test_argparse_cannot_be_given_several_values_with_a_dash(value: str) -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--names", nargs="+")

    assert parsed(define, names=[value])["names"] == [value]
    with pytest.raises(DashedValue):
        line_of(define).words({"names": ["a", value]})


def test_what_only_looks_like_an_option_can_be_given() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--names", nargs="+")

    names = ["-", "-1.5", "- a", ""]

    assert parsed(define, names=names)["names"] == names


def test_negative_numbers_are_options_where_one_is() -> None:
    def define(parser: CommandParser) -> None:
        parser.add_argument("--numbers", nargs="+", type=int)
        parser.add_argument("-1", action="store_true", dest="one")

    assert line_of(define).problems({"numbers": [2, -3]})["numbers"]


@pytest.mark.parametrize(
    ("choices", "kind"),
    [
        (range(1, 4), "Literal[1, 2, 3]"),
        (range(100, 1, -1), "int"),
        (range(0, 1000, 10), "Literal"),
        ({1: "one", 2: "two"}, "Literal[1, 2]"),
    ],
)
def test_numbers_to_choose_from(choices: Any, kind: str) -> None:
    found = only(lambda parser: parser.add_argument("number", type=int, choices=choices))

    assert found.annotation_text.startswith(kind)
    assert found.adapter.validate_python(2) == 2 if 2 in choices else True


@pytest.mark.parametrize(
    ("choices", "kind", "refused"),
    [(Whatever(), str, "no"), ([], str, "no"), (range(0, 10**9, 3), int, "4")],
)
def test_choices_that_cannot_be_listed_are_asked(choices: Any, kind: Any, refused: str) -> None:
    options = {"choices": choices, "metavar": "IT", "help": "%(choices)s"}

    found = only(lambda parser: parser.add_argument("--it", type=kind, **options))

    assert found.annotation_text == f"{kind.__name__} | None"
    with pytest.raises(ValueError, match="not one of the choices"):
        found.adapter.validate_python(refused)


@pytest.mark.parametrize(
    ("error", "said"),
    [(ObjectDoesNotExist("nobody"), ": nobody"), (ValidationError("too short"), ": too short")],
)
def test_a_type_of_the_projects_own_may_raise_anything(error: Exception, said: str) -> None:
    def look_up(text: str) -> Any:
        raise error

    found = only(lambda parser: parser.add_argument("--user", type=look_up, default="admin"))

    assert found.default is Default.COMPUTED
    with pytest.raises(ValueError, match=said):
        found.adapter.validate_python("anna")


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["Do it", "Default: 3."], "Do it. Default: 3."),
        (["Do it.", "Default: 3."], "Do it. Default: 3."),
        (["Do it", "(--it)", "Default: 3."], "Do it (--it). Default: 3."),
        (["Do it!", "(--it)", "Default: 3."], "Do it! (--it) Default: 3."),
        (["(--it)", "Default: 3."], "(--it) Default: 3."),
        (["Do it", ""], "Do it"),
    ],
)
def test_texts_in_a_line_are_sentences(texts: list[str], line: str) -> None:
    assert joined(texts) == line
    assert str(joined(map(gettext_lazy, texts[:1]))) == texts[0]


def test_dates_to_choose_from_are_texts() -> None:
    days = [date(2026, 1, 1), date(2026, 1, 2)]

    def define(parser: CommandParser) -> None:
        parser.add_argument("--day", type=date.fromisoformat, choices=days, default=days[1])

    found = only(define)

    assert (found.annotation_text, found.default) == (
        "Literal['2026-01-01', '2026-01-02']",
        "2026-01-02",
    )
    assert parsed(define, day="2026-01-01")["day"] == days[0]


@pytest.mark.parametrize(
    ("default", "shown"),
    [
        (["a", "b"], ["a", "b"]),
        (("a",), ["a"]),
        ([object], Default.COMPUTED),
        ("ab", Default.COMPUTED),
        (argparse.SUPPRESS, Default.COMPUTED),
    ],
)
def test_defaults_of_lists(default: Any, shown: Any) -> None:
    found = only(lambda parser: parser.add_argument("--names", nargs="*", default=default))

    assert found.default == shown


@pytest.mark.parametrize("default", ["x", 1.5, True])
def test_a_default_that_does_not_fit_is_told(default: Any) -> None:
    found = only(lambda parser: parser.add_argument("--n", type=int, default=default))

    assert found.default is Default.COMPUTED
    assert found.help_text == f"Default: {default}."


def test_nothing_is_told_of_secrets() -> None:
    def define(parser: CommandParser) -> None:
        text = "%(default)s"
        parser.add_argument("--api-key", dest="a", default="s1", action="append", help=text)
        parser.add_argument("--token", dest="b", nargs="?", const="s2", default=7, help=text)
        parser.add_argument("--secret-date", dest="c", type=date.fromisoformat, default="s3")
        parser.add_argument("--tokens", dest="d", action="append", default=["s4"])

    parameters = line_of(define).signature.parameters

    texts = " ".join(str(item.help_text) for item in parameters)
    assert MASK in texts
    assert not [number for number in "12347" if f"s{number}" in texts or " 7" in texts]
    assert ["Secret" in item.annotation_text for item in parameters[:4]] == [True] * 4


def test_a_type_that_argparse_knows_by_name_takes_texts() -> None:
    def define(parser: CommandParser) -> None:
        parser.register("type", "loud", str.upper)
        parser.add_argument("--it", type="loud")

    assert only(define).annotation_text == "str | None"
    assert parsed(define, it="x")["it"] == "X"


def test_a_group_of_which_one_is_hidden_asks_for_nothing() -> None:
    def define(parser: CommandParser) -> None:
        group = parser.add_mutually_exclusive_group(required=True)
        group.add_argument("--no-input", action="store_false", dest="interactive")
        group.add_argument("--name")

    assert line_of(define).problems({}) == {}


@pytest.mark.parametrize("opener", [open, partial(open, mode="w"), argparse.FileType("w")])
def test_no_file_is_opened_to_look_at_a_value(opener: Any, tmp_path: Path) -> None:
    found = only(lambda parser: parser.add_argument("log", type=opener))

    assert found.adapter.validate_python(str(tmp_path / "log")) == str(tmp_path / "log")
    assert not list(tmp_path.iterdir())


def test_sentences_are_in_the_language_of_the_reader() -> None:
    found = only(lambda parser: parser.add_argument("--log", type=argparse.FileType("r")))

    with override("de"):
        german = str(found.help_text)
    with override("en"):
        english = str(found.help_text)

    assert english == "A file where the worker runs."
    assert german
    assert "ImportError('x')" in str(unreadable(ImportError("x")).problem)
