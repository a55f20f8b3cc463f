"""The pages of the shop for its customers."""

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path
from django.views.generic import TemplateView

from shop import seed
from shop.views import ReportListView, ReportView

LOGINS = {"staff": seed.USERS, "customers": seed.CUSTOMERS}

urlpatterns = [
    path(
        "",
        TemplateView.as_view(template_name="shop/home.html", extra_context=LOGINS),
        name="home",
    ),
    path("login/", LoginView.as_view(template_name="shop/login.html"), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("reports/", ReportListView.as_view(), name="reports"),
    path("reports/<int:pk>/", ReportView.as_view(), name="report"),
]
