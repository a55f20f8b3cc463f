"""Settings of the example project: a small shop, for trying things out, not for production.

As it is, it needs no server: SQLite is the database, and the Celery broker is a folder
of files. Two environment variables choose real servers instead:

PostgreSQL with Redis::

    DATABASE_URL=postgres://shop:secret@127.0.0.1:5432/shop
    CELERY_BROKER_URL=redis://127.0.0.1:6379/0

PostgreSQL with RabbitMQ::

    DATABASE_URL=postgres://shop:secret@127.0.0.1:5432/shop
    CELERY_BROKER_URL=amqp://guest:guest@127.0.0.1:5672//

MariaDB or MySQL work too (``mysql://...``), once ``mysqlclient`` is installed.
The ``example`` extra of the package brings the drivers of PostgreSQL and Redis.

With the ``websocket`` extra the server is daphne, and the customers' page has a websocket;
without it, or with ``EXAMPLE_WEBSOCKET=0``, the page asks now and then.
"""

import os
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import dj_database_url
import django

BASE_DIR = Path(__file__).resolve().parent.parent

#: The database, the messages and the logs of the demo live here.
VAR = Path(os.environ.get("EXAMPLE_VAR") or BASE_DIR / "var").resolve()
for folder in ("messages", "control"):
    (VAR / folder).mkdir(parents=True, exist_ok=True)

#: What is needed for a websocket is installed, and wanted.
WEBSOCKET = os.environ.get("EXAMPLE_WEBSOCKET") != "0" and all(
    map(find_spec, ("channels", "daphne"))
)
#: How long a customer waits for each step of a report.
REPORT_SECONDS_A_STEP = float(os.environ.get("EXAMPLE_SECONDS_A_STEP") or 2)

SECRET_KEY = "the example project keeps no secrets"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "config.urls"
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "Europe/Vienna"
LANGUAGE_CODE = "en"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# The demo's users have short passwords on purpose.
AUTH_PASSWORD_VALIDATORS = []
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "import_export",
    # Keeps what groups and chords need; the runs themselves are in the journal.
    "django_celery_results",
    "celery_admin_runner",
    "shop",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
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

# The database.
DATABASES = {
    "default": dj_database_url.parse(
        os.environ.get("DATABASE_URL") or f"sqlite:///{VAR / 'db.sqlite3'}"
    )
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # The worker writes while the web server reads: a write-ahead log lets them, and
    # who has to wait for the other waits up to 20 seconds.
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
    }

# Celery.
CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL") or "filesystem://"
if CELERY_BROKER_URL == "filesystem://":
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(VAR / "messages"),
        "data_folder_out": str(VAR / "messages"),
        "control_folder": str(VAR / "control"),
    }
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# Results are kept in the journal.
CELERY_RESULT_BACKEND = "celery-admin-runner"
CELERY_TASK_DEFAULT_QUEUE = "shop"
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TIMEZONE = TIME_ZONE
# What a beat sends, if one is started; the demo itself starts none.
CELERY_BEAT_SCHEDULE = {
    "Count the orders": {"task": "shop.tasks.count_orders_by_weekday", "schedule": 60.0},
    "Clear old sessions": {"task": "command.sessions.clearsessions", "schedule": 24 * 3600.0},
}

# What shop/mails.py writes goes into files. By SMTP it would need a timeout too.
MAIL_BACKEND, MAIL_FOLDER = "django.core.mail.backends.filebased.EmailBackend", VAR / "mails"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": MAIL_BACKEND, "OPTIONS": {"file_path": MAIL_FOLDER}}}
else:
    EMAIL_BACKEND, EMAIL_FILE_PATH = MAIL_BACKEND, MAIL_FOLDER

# The websocket of the customers' page.
if WEBSOCKET:
    # daphne comes first: its runserver serves websockets too, and takes the place of Django's.
    INSTALLED_APPS = ["daphne", "channels", *INSTALLED_APPS]
    ASGI_APPLICATION = "config.asgi.application"
    # A channel layer takes what a worker has to tell to the server that holds the websocket. The
    # one in memory never leaves its process: then the server looks into the database each second.
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    if CELERY_BROKER_URL.startswith("redis://") and find_spec("channels_redis"):
        # channels_redis waits five seconds for a message; redis-py 8 gives up after as many.
        redis = {"address": CELERY_BROKER_URL, "socket_timeout": 15}
        CHANNEL_LAYERS["default"] = {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            "CONFIG": {"hosts": [redis]},
        }

# What this package is told. Every key is explained in README.rst.
CELERY_ADMIN_RUNNER = {
    "APP": "config.celery:app",
    # The first pattern that matches a task counts.
    "RUNNABLE_TASKS": {
        "shop.tasks.close_month": {"confirm": True, "reason": True},
        "shop.tasks.refund_order": {"permission": "shop.refund_order"},
        "shop.tasks.rotate_api_key": {"groups": ["Administrators"]},
        "shop.tasks.*": {},
        "shop.models.*": {},
        "command.*": {},
    },
    # Runs that code or a beat starts are in the journal too.
    "TRACK": ["shop.tasks.*"],
    "RETENTION": timedelta(weeks=4),
    # Management commands that are tasks, each with the options of its task.
    "COMMAND_TASKS": {
        "clearsessions": {"unique": True, "stale_time_limit": 600},
        "shop.price_list": {},
    },
    # What the shop asks of each task, see manage.py check.
    "TASK_CHECKER": "shop.checks:check_task",
    # Where the customers' page finds its websocket, see config/asgi.py; empty: it asks.
    "WEBSOCKET_URL": "/ws/task-runs/" if WEBSOCKET else "",
}
