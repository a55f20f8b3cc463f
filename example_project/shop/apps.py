"""The shop, as Django knows it."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """A small shop, to have something to run tasks on."""

    name = "shop"
    verbose_name = "Shop"
