"""The shop's own pages. The search fields are what the run form's autocomplete asks."""

from celery.exceptions import TimeoutError
from django.contrib import admin, messages
from django.contrib.admin import ModelAdmin
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from celery_admin_runner.admin import RunHistoryAdmin
from celery_admin_runner.contexts import RunContext
from shop.models import Customer, Order, Product, Report
from shop.tasks import add_vat, send_receipt

#: How long a page waits for the result of a task.
WAIT_SECONDS = 5


@admin.register(Product)
class ProductAdmin(RunHistoryAdmin, ModelAdmin):
    """Products, with what is left of them."""

    list_display = ("sku", "name", "price", "stock")
    search_fields = ("sku", "name")
    #: Run once for all products that are selected.
    selection_tasks = ("shop.tasks.restock_products",)
    actions = ("show_gross_price",)

    @admin.action(permissions=["view"], description="Show the price with value added tax")
    def show_gross_price(self, request: HttpRequest, queryset: QuerySet[Product]) -> None:
        """Ask a worker for the price, and wait for what it says."""
        for product in queryset:
            try:
                gross = add_vat.apply_async_and_get_result((product.price,), timeout=WAIT_SECONDS)
            except TimeoutError:
                self.message_user(request, "No worker answers.", messages.ERROR)
                return
            self.message_user(request, f"{product}: {gross} euros", messages.SUCCESS)


@admin.register(Customer)
class CustomerAdmin(ModelAdmin):
    """Customers."""

    list_display = ("name", "email", "user")
    list_select_related = ("user",)
    search_fields = ("name", "email")
    raw_id_fields = ("user",)


@admin.register(Order)
class OrderAdmin(RunHistoryAdmin, ModelAdmin):
    """Orders, the newest first; each with its runs, and buttons for the tasks of its model."""

    list_display = ("id", "customer", "product", "quantity", "total", "placed_at", "paid_at")
    list_select_related = ("customer", "product")
    list_filter = ("paid_at",)
    search_fields = ("=id", "customer__name", "product__name")
    autocomplete_fields = ("customer", "product")
    date_hierarchy = "placed_at"
    readonly_fields = ("picked_at", "shipped_at")
    actions = ("mark_as_paid",)

    @admin.action(permissions=["change"], description="Mark selected orders as paid")
    def mark_as_paid(self, request: HttpRequest, queryset: QuerySet[Order]) -> None:
        """Note the payments, and send the receipts once that is committed."""
        with transaction.atomic():
            for order in queryset:
                order.paid_at = order.paid_at or timezone.now()
                order.save(update_fields=["paid_at"])
                context = RunContext(user=request.user, obj=order, reason="It was paid")
                send_receipt.apply_async_on_commit((order.pk,), run_context=context)
        text = "Noted. Whoever had no receipt within the hour gets one."
        self.message_user(request, text, messages.SUCCESS)


@admin.register(Report)
class ReportAdmin(RunHistoryAdmin, ModelAdmin):
    """What customers have asked for, with the runs that built it."""

    list_display = ("id", "owner", "period", "created_at", "built_at")
    list_select_related = ("owner",)
    list_filter = ("period",)
    search_fields = ("=id", "owner__username")
    readonly_fields = ("owner", "period", "created_at", "built_at", "content")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Leave that to customers."""
        return False
