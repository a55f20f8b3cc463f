"""What a client may ask for by a frame of a websocket; the rest is refused with a reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from django.utils.translation import gettext as _

from celery_admin_runner.live.payload import RUNS_MAX

#: The longest frame that is looked at, in characters: several times what RUNS_MAX ids need.
FRAME_MAX_LENGTH = 16 * 1024

Kind = Literal["snapshot", "follow", "seen"]


class FrameRefused(ValueError):
    """A frame can't be understood; the text, in the current language, says why."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is asked for, and of which runs."""

    kind: Kind
    ids: frozenset[int] = frozenset()


def parse(text: str | None) -> Frame:
    """Return what a text frame asks for (None: a binary one); raises FrameRefused."""
    if text is None:
        raise FrameRefused(_("A frame must be text, not binary."))
    if len(text) > FRAME_MAX_LENGTH:
        raise FrameRefused(
            _("A frame must not be longer than %(max)d characters.") % {"max": FRAME_MAX_LENGTH}
        )
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FrameRefused(_("A frame must be JSON.")) from error
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "snapshot":
        return Frame(kind="snapshot")
    if kind == "follow":
        return Frame(kind="follow", ids=_ids(content.get("ids")))
    if kind == "seen":
        return Frame(kind="seen", ids=_ids(content.get("ids")))
    raise FrameRefused(
        _('A frame must be an object whose "type" is "snapshot", "follow" or "seen".')
    )


def _ids(value: Any) -> frozenset[int]:
    is_list = isinstance(value, list) and 0 < len(value) <= RUNS_MAX
    # A bool is an int, too.
    if not is_list or any(type(item) is not int for item in value):
        raise FrameRefused(
            _('"ids" must be a list of 1 to %(max)d ids of runs.') % {"max": RUNS_MAX}
        )
    return frozenset(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON.")
