"""The test project for an ASGI server, with the websocket of task runs."""

from __future__ import annotations

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.utils.module_loading import import_string

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django_application = get_asgi_application()
#: Imported when Django is ready: it brings the models.
websocket_urlpatterns = import_string("celery_admin_runner.live.routing.websocket_urlpatterns")
with_user = import_string("celery_admin_runner.live.handshakes.SessionAuthMiddlewareStack")

application = ProtocolTypeRouter(
    {
        "http": ASGIStaticFilesHandler(django_application),
        "websocket": AllowedHostsOriginValidator(with_user(URLRouter(websocket_urlpatterns))),
    }
)
