"""Who holds a lease, and for how long: by the database's clock and by one's own."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from celery_admin_runner import leases
from celery_admin_runner.exceptions import BeatMisconfigured, LeaseLost
from celery_admin_runner.leases import Claim, beat_lease_seconds, database_now, elapsed
from celery_admin_runner.models import Lease

NAME = "beat of the tests"


def make_claim(seconds: float = 60) -> Claim:
    return Claim(NAME, seconds=seconds)


def let_it_run_out() -> None:
    """Make the lease one that ran out a second ago, as the database sees it."""
    past = database_now("default") - timedelta(seconds=1)
    assert Lease.objects.filter(name=NAME).update(expires_at=past)


@pytest.fixture
def later(monkeypatch):
    """Let seconds pass on the clock of this process: ``later(60)``."""
    passed = [0.0]
    monkeypatch.setattr(leases, "elapsed", lambda: elapsed() + sum(passed))
    return passed.append


@pytest.mark.django_db
def test_the_clock_of_the_database_tells_the_time_of_day():
    # Of a server in the same time zone or another, on this machine or near it.
    assert abs(database_now("default") - timezone.now()) < timedelta(minutes=10)


@pytest.mark.django_db
def test_the_clock_of_the_database_is_the_same_in_every_time_zone():
    before = database_now("default")

    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("SET time_zone = '-08:00'")
        elif connection.vendor == "postgresql":
            cursor.execute("SET LOCAL TIME ZONE -8")
        after = database_now("default")
        if connection.vendor == "mysql":
            cursor.execute("SET time_zone = 'SYSTEM'")

    assert timedelta() <= after - before < timedelta(minutes=1)


def test_own_time_passes():
    before = elapsed()
    time.sleep(0.001)

    assert elapsed() > before


@pytest.mark.django_db
def test_one_of_two_takes_a_lease():
    first, second = make_claim(), make_claim()

    assert [first.take(), second.take()] == [True, False]
    assert [first.is_held, second.is_held] == [True, False]


@pytest.mark.django_db
def test_a_lease_that_ran_out_goes_to_the_next_with_what_was_left_in_it():
    first, second = make_claim(), make_claim()
    first.take()
    first.keep({"a": 1})
    let_it_run_out()

    assert second.take()
    assert second.data == {"a": 1}
    assert second.counter == first.counter + 1


@pytest.mark.django_db
def test_who_lost_a_lease_changes_nothing_in_it():
    first, second = make_claim(), make_claim()
    first.take()
    let_it_run_out()
    second.take()
    second.keep("second's")

    for act in (first.renew, lambda: first.keep("first's")):
        with pytest.raises(LeaseLost):
            act()
    first.give_back()

    lease = Lease.objects.get(name=NAME)
    assert (lease.holder, lease.data) == (second.holder, "second's")
    assert lease.expires_at > database_now("default")


@pytest.mark.django_db
def test_a_lease_that_ran_out_and_nobody_took_is_renewed():
    claim = make_claim()
    claim.take()
    let_it_run_out()

    claim.renew()

    assert not make_claim().take()


@pytest.mark.django_db
def test_a_holder_stops_before_the_database_lets_another_in(later):
    claim = make_claim(seconds=60)
    claim.take()
    later(53)
    claim.confirm()

    later(2)

    assert not claim.is_held
    with pytest.raises(LeaseLost):
        claim.confirm()
    assert not make_claim().take()


@pytest.mark.django_db
def test_a_lease_is_renewed_when_a_quarter_of_it_is_over(later):
    claim = make_claim(seconds=60)
    claim.take()
    expires_at = Lease.objects.get(name=NAME).expires_at
    claim.renew_if_due()
    assert Lease.objects.get(name=NAME).expires_at == expires_at

    later(16)
    claim.renew_if_due()

    assert Lease.objects.get(name=NAME).expires_at > expires_at
    assert claim.is_held


@pytest.mark.django_db
def test_a_statement_that_comes_late_shortens_no_lease():
    claim = make_claim()
    claim.take()
    expires_at = Lease.objects.get(name=NAME).expires_at
    term = Lease.objects.in_term(NAME, holder=claim.holder, counter=claim.counter)

    assert not term.renew(expires_at - timedelta(seconds=1))
    assert Lease.objects.get(name=NAME).expires_at == expires_at


@pytest.mark.django_db
def test_a_lease_that_is_given_back_is_free_at_once():
    first, second = make_claim(), make_claim()
    first.take()

    first.give_back()

    assert not first.is_held
    assert second.take()


@pytest.mark.django_db
def test_who_has_a_lease_already_begins_a_new_term():
    claim = make_claim()
    claim.take()
    old = Lease.objects.in_term(NAME, holder=claim.holder, counter=claim.counter)

    assert claim.take()
    assert not old.keep("too late")


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no server to end a session")
def test_a_connection_that_the_server_ended_is_opened_again():
    claim = make_claim()
    claim.take()
    is_mysql = connection.vendor == "mysql"
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()" if is_mysql else "SELECT pg_backend_pid()")
        (session,) = cursor.fetchone()
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("KILL %s" if is_mysql else "SELECT pg_terminate_backend(%s)", [session])
    other.close()

    claim.renew()

    assert claim.is_held


@pytest.mark.parametrize("seconds", [0, -1, 0.5, float("nan"), float("inf"), 90_000, True, "60"])
def test_a_lease_of_no_sensible_length_is_refused(configure, seconds):
    configure(BEAT_LEASE_SECONDS=seconds)

    with pytest.raises(BeatMisconfigured, match="BEAT_LEASE_SECONDS"):
        beat_lease_seconds()


def test_a_lease_lasts_a_minute_unless_the_project_says_otherwise(configure):
    assert beat_lease_seconds() == 60
    configure(BEAT_LEASE_SECONDS=2)
    assert beat_lease_seconds() == 2
