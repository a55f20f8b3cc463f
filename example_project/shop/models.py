"""What the shop sells, to whom, and what was ordered."""

from typing import Annotated, Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import F
from django.urls import reverse
from django.utils import timezone
from pydantic import Field

from celery_admin_runner.model_tasks import model_task
from shop.queues import Queue


class Product(models.Model):
    """Something on the shelf."""

    sku = models.CharField("SKU", max_length=20, unique=True)
    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ("sku",)

    def __str__(self) -> str:
        return f"{self.sku} {self.name}"


class Customer(models.Model):
    """Somebody who buys."""

    name = models.CharField(max_length=100)
    email = models.EmailField(unique=True)
    #: With this login he or she comes to the shop's pages.
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True
    )

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """What a customer ordered; one product an order, to keep the shop small."""

    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="orders")
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="orders")
    quantity = models.PositiveIntegerField(default=1)
    total = models.DecimalField(max_digits=10, decimal_places=2)
    placed_at = models.DateTimeField()
    paid_at = models.DateTimeField(null=True, blank=True)
    picked_at = models.DateTimeField(null=True, blank=True, editable=False)
    shipped_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ("-placed_at",)
        permissions = (("refund_order", "Can refund orders"),)

    def __str__(self) -> str:
        return f"Order {self.pk} of {self.customer}"

    @model_task(title="Take from the shelf")
    def pick(self) -> str:
        """Take what was ordered from the shelf; fails if too little is left."""
        product = Product.objects.filter(pk=self.product_id, stock__gte=self.quantity)
        with transaction.atomic():
            order = Order.objects.filter(pk=self.pk, picked_at=None)
            if not order.update(picked_at=timezone.now()):
                return "It was taken from the shelf before"
            if not product.update(stock=F("stock") - self.quantity):
                raise ValueError(f"Only {self.product.stock} of {self.product} are left")
        return f"{self.quantity} of {self.product} taken from the shelf"

    @model_task(title="Ship", depends_on=("pick",), queue=Queue.SLOW)
    def ship(self, parcels: Annotated[int, Field(ge=1, le=9)] = 1) -> str:
        """Send the order to its customer. It is taken from the shelf first.

        Args:
            parcels: In how many parcels.
        """
        self.shipped_at = timezone.now()
        self.save(update_fields=["shipped_at"])
        return f"Parcels on their way to {self.customer}: {parcels}"


class Report(models.Model):
    """What a customer wants to know of the own orders; ``shop.tasks.build_report`` fills it."""

    class Period(models.TextChoices):
        """Which orders it is about."""

        WEEK = "week", "The last 7 days"
        MONTH = "month", "The last 30 days"
        ALL = "all", "Everything so far"
        ARCHIVE = "archive", "The years before (fails, to see that too)"

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="reports"
    )
    period = models.CharField(max_length=10, choices=Period, default=Period.MONTH)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    built_at = models.DateTimeField(null=True, editable=False)
    #: See ``shop.reports``; empty until it is built.
    content = models.JSONField(default=dict, editable=False)

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"My orders: {self.name}"

    def get_absolute_url(self) -> str:
        """Return its page, to which the run that built it leads."""
        return reverse("report", args=[self.pk])

    @property
    def name(self) -> str:
        """The period, without what stands in brackets."""
        return self.Period(self.period).label.partition(" (")[0].lower()

    def finish(self, content: dict[str, Any]) -> None:
        """Keep what was worked out."""
        self.content, self.built_at = content, timezone.now()
        self.save(update_fields=["content", "built_at"])
