"""Settings of the test project. SQLite and the filesystem broker need nothing else.

``DATABASE_URL`` and ``CELERY_BROKER_URL`` choose other servers.
"""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import dj_database_url
import django

SECRET_KEY = "only for tests"
USE_TZ = True
TIME_ZONE = "Europe/Vienna"
ROOT_URLCONF = "tests.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ALLOWED_HOSTS = ["*"]
STATIC_URL = "/static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def own_name(variable: str, default: str) -> str:
    """Return the name in this variable of the environment, which worker processes get too.

    Of several test processes side by side (pytest-xdist) each adds its own ending.
    """
    name = os.environ.get(variable) or default
    ending = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not name.endswith(f"-{ending}") and ending:
        name = f"{name}-{ending}"
    os.environ[variable] = name
    return name


#: A folder of this run's own.
FOLDER = Path(own_name("TEST_FOLDER", tempfile.mkdtemp(prefix="taskruns-")))
FOLDER.mkdir(exist_ok=True)

#: A queue of this run's own, on a broker that others may use too.
QUEUE = own_name("TEST_QUEUE", f"tests-{os.getpid()}")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "import_export",
    "django_celery_results",
    "celery_admin_runner",
    "tests",
    # The extra [beat]: after our own app, so that its admin would be the last to register.
    *(["django_celery_beat"] if find_spec("django_celery_beat") else []),
    # The extra [websocket].
    *(["channels"] if find_spec("channels") else []),
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "tests.middleware.strict_csp",
]
if django.VERSION >= (6,):
    # Django's own, with the same policy.
    MIDDLEWARE[-1] = "django.middleware.csp.ContentSecurityPolicyMiddleware"
    SECURE_CSP = {"default-src": ["'self'"]}
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
        os.environ.get("DATABASE_URL") or f"sqlite:///{FOLDER / 'db.sqlite3'}"
    )
}
if "TEST_DATABASE_NAME" in os.environ:
    # A worker of the tests: the same database as theirs.
    DATABASES["default"]["NAME"] = os.environ["TEST_DATABASE_NAME"]
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A real file: the worker, a process of its own, opens the same database.
    DATABASES["default"]["TEST"] = {"NAME": str(FOLDER / "test.sqlite3")}
    DATABASES["default"]["OPTIONS"] = {
        "timeout": float(os.environ.get("TEST_DATABASE_TIMEOUT", "20")),
        "transaction_mode": "IMMEDIATE",
        # No test takes the power away, so none waits for the disk.
        "init_command": "PRAGMA synchronous = OFF",
    }

ASGI_APPLICATION = "tests.asgi.application"
#: A Redis for the channel layer, where tests need one that crosses processes; "": there is none.
CHANNEL_REDIS = os.environ.get("TEST_CHANNEL_REDIS", "")
if not CHANNEL_REDIS and os.environ.get("CELERY_BROKER_URL", "").startswith("redis://"):
    CHANNEL_REDIS = os.environ["CELERY_BROKER_URL"]
CHANNEL_LAYER = os.environ.get(
    "TEST_CHANNEL_LAYER", "channels_redis.pubsub.RedisPubSubChannelLayer"
)
CHANNEL_LAYERS: dict[str, object] = {}
if find_spec("channels"):
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
if find_spec("channels_redis") and CHANNEL_REDIS and "TEST_CHANNEL_PREFIX" in os.environ:
    # Processes of the tests that push, or hear, across processes: those of one test.
    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": CHANNEL_LAYER,
            "CONFIG": {"hosts": [CHANNEL_REDIS], "prefix": os.environ["TEST_CHANNEL_PREFIX"]},
        }
    }

CELERY_ADMIN_RUNNER = {
    "APP": "tests.celery_app:app",
    "RETENTION": timedelta(weeks=4),
    "TRACK": ["tests.tracked.*"],
    "SCHEDULE_ETA": True,
    "DISPATCH": os.environ.get("TEST_DISPATCH", "command"),
    "BEAT_LEASE_SECONDS": float(os.environ.get("TEST_BEAT_LEASE_SECONDS", "60")),
    "COMMAND_TASKS": {
        "clearsessions": {"unique": True, "stale_time_limit": 60},
        "tests.try_*": {},
    },
    "PRUNE_ON_STARTUP": "TEST_PRUNE_ON_STARTUP" in os.environ,
    "WEBSOCKET_URL": os.environ.get("TEST_WEBSOCKET_URL", ""),
}
if "TEST_OUTPUT_MAX_BYTES" in os.environ:
    CELERY_ADMIN_RUNNER["OUTPUT_MAX_BYTES"] = int(os.environ["TEST_OUTPUT_MAX_BYTES"])
