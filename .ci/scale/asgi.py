"""Pages and websockets, as README.rst has it."""

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.utils.module_loading import import_string

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "scale.settings")
# This loads the apps, and what is imported by its name below needs them.
pages = get_asgi_application()

application = ProtocolTypeRouter(
    {
        "http": pages,
        "websocket": AllowedHostsOriginValidator(
            import_string("celery_admin_runner.live.handshakes.SessionAuthMiddlewareStack")(
                URLRouter(import_string("celery_admin_runner.live.routing.websocket_urlpatterns"))
            )
        ),
    }
)
