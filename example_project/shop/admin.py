"""The shop's own pages. The search fields are what the run form's autocomplete asks."""

from django.contrib import admin

from shop.models import Customer, Order, Product


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    """Products, with what is left of them."""

    list_display = ("sku", "name", "price", "stock")
    search_fields = ("sku", "name")


@admin.register(Customer)
class CustomerAdmin(admin.ModelAdmin):
    """Customers."""

    list_display = ("name", "email")
    search_fields = ("name", "email")


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders, the newest first."""

    list_display = ("id", "customer", "product", "quantity", "total", "placed_at", "paid_at")
    list_select_related = ("customer", "product")
    list_filter = ("paid_at",)
    search_fields = ("=id", "customer__name", "product__name")
    autocomplete_fields = ("customer", "product")
    date_hierarchy = "placed_at"
