"""Which values are secret, and how they are masked."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from celery_admin_runner.conf import settings

#: What is stored and shown in place of a secret.
MASK = "********"
#: The secrets of a call where it can't be told which they are: this text is in every text.
EVERYTHING = ""


def is_secret_name(name: str) -> bool:
    """Tell whether REDACT hides a parameter or key of this name."""
    return _matches(name, tuple(settings.REDACT))


@lru_cache(maxsize=1024)
def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    lowered = name.lower()
    return any(fnmatchcase(lowered, pattern.lower()) for pattern in patterns)


def masked(value: Any) -> Any:
    """Return ``value`` with the values of secret keys masked, at any depth."""
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(key, str) and is_secret_name(key) else masked(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(item) for item in value]
    return value


def has_mask(value: Any) -> bool:
    """Tell whether something in ``value`` was masked."""
    if isinstance(value, Mapping):
        return any(has_mask(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(has_mask(item) for item in value)
    return bool(value == MASK)


def texts_of(value: Any) -> Iterator[str]:
    """Yield each text and number in ``value`` in the forms in which messages hold it."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, bytes) and value:
        yield from (str(value), b64encode(value).decode())
        yield from texts_of(value.decode(errors="replace"))
    elif value is not None and not isinstance(value, bool) and str(value):
        yield str(value)
        # Messages often hold the repr of a text, and its JSON: "\n", quotes, umlauts.
        yield from {repr(str(value))[1:-1], json.dumps(str(value))[1:-1]} - {str(value)}


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` with every secret in it masked, the longest first."""
    texts = set(secrets)
    if EVERYTHING in texts:
        return MASK if text else ""
    for secret in sorted(texts, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def scrubbed(value: Any, secrets: frozenset[str]) -> Any:
    """Return plain JSON data with every secret in its texts, keys and numbers masked."""
    if not secrets or value is None or isinstance(value, bool):
        return value
    if EVERYTHING in secrets:
        return MASK
    if isinstance(value, Mapping):
        return {scrub(key, secrets): scrubbed(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(item, secrets) for item in value]
    if isinstance(value, str):
        return scrub(value, secrets)
    return MASK if str(value) in secrets else value
