"""The shop, as Django knows it."""

from django.apps import AppConfig

from shop import mails


class ShopConfig(AppConfig):
    """A small shop, to have something to run tasks on."""

    name = "shop"
    verbose_name = "Shop"

    def ready(self) -> None:
        """Listen to what becomes of the runs."""
        mails.connect()
