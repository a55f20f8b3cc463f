"""A small site, made as README.rst says, of which try_scale.py starts many processes."""

from scale.celery import app

__all__ = ["app"]
