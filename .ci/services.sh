# Debian packages and servers: install what is missing, start what is not running.
# Sourced by .ci/run.
# shellcheck shell=bash disable=SC2034

export DEBIAN_FRONTEND=noninteractive

POSTGRESQL_URL="postgres://taskruns:taskruns@127.0.0.1:5432/taskruns"
MARIADB_URL="mysql://taskruns:taskruns@127.0.0.1:3306/taskruns"
REDIS_URL="redis://127.0.0.1:6379/0"
RABBITMQ_URL="amqp://guest:guest@127.0.0.1:5672//"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

as_user() {
    local user="$1"
    shift
    if [ "$(id -u)" = 0 ]; then
        # Not where that user may not read.
        (cd / && su "$user" -s /bin/sh -c "$*")
    else
        (cd / && sudo -n -u "$user" sh -c "$*")
    fi
}

# ensure_packages PROGRAM-OR-FILE:PACKAGE...: install the packages whose program is missing.
ensure_packages() {
    local pair missing=()
    for pair in "$@"; do
        if ! command -v "${pair%%:*}" >/dev/null && [ ! -e "${pair%%:*}" ]; then
            missing+=("${pair##*:}")
        fi
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        echo "Installing ${missing[*]}"
        as_root apt-get update -q
        as_root apt-get install -q -y --no-install-recommends "${missing[@]}"
    fi
}

# wait_for NAME COMMAND...: wait until the command succeeds; fail after a minute.
wait_for() {
    local name="$1" _
    shift
    for _ in $(seq 60); do
        if "$@" >/dev/null 2>&1; then
            echo "$name answers"
            return
        fi
        sleep 1
    done
    echo "$name does not answer" >&2
    return 1
}

port_is_open() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

start_postgresql() {
    local version
    version="$(find /etc/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -V | tail -n 1)"
    # What the tests write need not outlive the machine: no server that is started here waits for
    # the disk.
    port_is_open 5432 || as_root pg_ctlcluster --skip-systemctl-redirect \
        -o "-c fsync=off -c full_page_writes=off" "$version" main start
    wait_for PostgreSQL pg_isready -q -h 127.0.0.1
    # A role of our own, so that it does not matter whom the server trusts.
    as_user postgres "psql -q -v ON_ERROR_STOP=1" <<'SQL'
SELECT 'CREATE ROLE taskruns' WHERE NOT EXISTS
    (SELECT FROM pg_roles WHERE rolname = 'taskruns') \gexec
ALTER ROLE taskruns LOGIN CREATEDB PASSWORD 'taskruns';
SELECT 'CREATE DATABASE taskruns OWNER taskruns' WHERE NOT EXISTS
    (SELECT FROM pg_database WHERE datname = 'taskruns') \gexec
SQL
    wait_for "The database in PostgreSQL" psql -q "$POSTGRESQL_URL" -c "SELECT 1"
}

start_mariadb() {
    if ! port_is_open 3306; then
        as_root install -d -o mysql -g mysql /run/mysqld
        as_root start-stop-daemon --start --oknodo --background --exec /usr/sbin/mariadbd \
            -- --user=mysql --innodb-flush-log-at-trx-commit=0
    fi
    wait_for MariaDB as_root mariadb -e "SELECT 1"
    as_root mariadb <<'SQL'
CREATE DATABASE IF NOT EXISTS taskruns CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS 'taskruns'@'127.0.0.1' IDENTIFIED BY 'taskruns';
CREATE USER IF NOT EXISTS 'taskruns'@'localhost' IDENTIFIED BY 'taskruns';
GRANT ALL ON *.* TO 'taskruns'@'127.0.0.1';
GRANT ALL ON *.* TO 'taskruns'@'localhost';
SQL
    wait_for "The database in MariaDB" \
        mariadb -h 127.0.0.1 -u taskruns -ptaskruns taskruns -e "SELECT 1"
}

start_redis() {
    port_is_open 6379 || redis-server --daemonize yes --bind 127.0.0.1 --port 6379 \
        --save "" --appendonly no --dir /tmp
    wait_for Redis redis-cli -h 127.0.0.1 ping
}

start_rabbitmq() {
    port_is_open 5672 || as_root rabbitmq-server -detached
    wait_for RabbitMQ port_is_open 5672
}

start_services() {
    ensure_packages \
        pg_ctlcluster:postgresql \
        /usr/sbin/mariadbd:mariadb-server \
        redis-server:redis-server \
        /usr/sbin/rabbitmq-server:rabbitmq-server \
        chromium:chromium \
        mariadb_config:libmariadb-dev \
        pkg-config:pkg-config \
        gcc:build-essential
    start_postgresql
    start_mariadb
    start_redis
    start_rabbitmq
    chromium --version
}
