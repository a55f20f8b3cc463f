"""Settings of the site: those of README.rst, for several web processes and workers.

``DATABASE_URL`` and ``CELERY_BROKER_URL`` name the servers; ``SCALE_NAME`` sets this site apart
from others on the same ones (its queues); ``SCALE_LAYER`` is the Redis of the channel layer, if
there is to be one; ``SCALE_PROCESS`` is what the database calls this process.
"""

import os
from datetime import timedelta

import dj_database_url

NAME = os.environ.get("SCALE_NAME", "scale")
LAYER = os.environ.get("SCALE_LAYER", "")

# Sessions are those of all web processes.
SECRET_KEY = NAME
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "scale.urls"
STATIC_URL = "static/"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ASGI_APPLICATION = "scale.asgi.application"
INSTALLED_APPS = [
    "daphne",
    "channels",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "import_export",
    "django_celery_results",
    "celery_admin_runner",
    "scale",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES = {
    "default": dj_database_url.parse(
        os.environ["DATABASE_URL"], conn_max_age=int(os.environ.get("SCALE_CONN_MAX_AGE", "0"))
    )
}
if DATABASES["default"]["ENGINE"].endswith("postgresql"):
    name = os.environ.get("SCALE_PROCESS", "script")
    DATABASES["default"].setdefault("OPTIONS", {})["application_name"] = f"{NAME} {name}"

CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
if LAYER:
    CHANNEL_LAYERS["default"] = {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [LAYER], "prefix": NAME},
    }

CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_RESULT_BACKEND = "celery-admin-runner"
CELERY_TASK_DEFAULT_QUEUE = f"{NAME}-fast"
# Whoever else is at the same broker hears and says nothing here.
CELERY_CONTROL_EXCHANGE = f"{NAME}-control"
CELERY_EVENT_EXCHANGE = f"{NAME}-events"
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Celery 5.7: else the threads of a pool ask RabbitMQ for more after a lost connection, on the one
# connection that the worker reads from, and may wait for ever.
CELERY_WORKER_ENABLE_PREFETCH_COUNT_REDUCTION = False
CELERY_BEAT_SCHEDULE = {"Tick": {"task": "scale.tasks.tick", "schedule": 1.0}}
CELERY_ADMIN_RUNNER = {
    "APP": "scale.celery:app",
    "RETENTION": timedelta(weeks=4),
    "TRACK": ["scale.tasks.*"],
    "DISPATCH": os.environ.get("SCALE_DISPATCH", "worker"),
    "BEAT_LEASE_SECONDS": 4,
    "WEBSOCKET_URL": "/ws/task-runs/",
}
