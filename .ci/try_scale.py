"""Run a site on several processes, kill them while they work, and count what was really done.

Usage: try_scale.py [--server daphne|gunicorn] [--keep]

``DATABASE_URL`` names PostgreSQL or MariaDB, ``CELERY_BROKER_URL`` RabbitMQ, and
``TEST_CHANNEL_REDIS``, if it is set, the Redis of the channel layer. Makes a database and queues
of its own, and removes them. Exits with a message if a run was lost, or done twice without need,
if the journal does not tell the truth, or if a process does not end in order.
"""

import argparse
import os
import secrets
import shutil
import tempfile
import urllib.parse
from pathlib import Path

import django
from django.utils.module_loading import import_string
from scale.processes import HERE, Proxy, Site, Wrong

PORTS = {"amqp": 5672, "postgres": 5432, "postgresql": 5432, "mysql": 3306}


def by_proxy(address: str) -> tuple[str, Proxy]:
    """Return the address of a proxy that leads to this server, and the proxy."""
    url = urllib.parse.urlsplit(address)
    proxy = Proxy(url.hostname or "127.0.0.1", url.port or PORTS[url.scheme])
    login = url.netloc.rpartition("@")[0]
    return url._replace(netloc=f"{login}@127.0.0.1:{proxy.port}").geturl(), proxy


def main(server: str, *, is_kept: bool) -> None:
    """Make what is needed, try all, and leave nothing."""
    name = f"scale_{secrets.token_hex(3)}"
    proxies: dict[str, Proxy] = {}
    broker_itself, database_itself = os.environ["CELERY_BROKER_URL"], os.environ["DATABASE_URL"]
    broker, proxies["broker"] = by_proxy(broker_itself)
    database, proxies["database"] = by_proxy(database_itself)
    # The script itself asks the database without a proxy, and later the one that it makes.
    os.environ |= {
        "CELERY_BROKER_URL": broker,
        "SCALE_NAME": name,
        "SCALE_LAYER": os.environ.get("TEST_CHANNEL_REDIS", ""),
        "DJANGO_SETTINGS_MODULE": "scale.settings",
    }
    django.setup()
    # Models can be imported only now.
    own_database, forget_queues, try_all = (
        import_string(f"scale.trial.{each}")
        for each in ("own_database", "forget_queues", "try_all")
    )
    environment = {
        **os.environ,
        "DATABASE_URL": urllib.parse.urlsplit(database)._replace(path=f"/{name}").geturl(),
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    folder = Path(tempfile.mkdtemp(prefix="try-scale-"))
    try:
        with own_database(name):
            try_all(Site(folder, environment), name, server, proxies)
    except Wrong:
        for log in sorted(folder.glob("*.log")):
            print(f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n")
        raise
    finally:
        forget_queues(name, broker_itself)
        if is_kept:
            print(folder)
        else:
            shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Try a site on several processes.")
    parser.add_argument("--server", choices=["daphne", "gunicorn"], default="daphne")
    parser.add_argument("--keep", action="store_true", help="Keep the logs.")
    options = parser.parse_args()
    main(options.server, is_kept=options.keep)
