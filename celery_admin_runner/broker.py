"""Connections to the broker that wait for nothing long, and an outlet for many messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from functools import lru_cache
from time import monotonic
from typing import Any

from celery import Celery
from celery.exceptions import QueueNotFound
from kombu import pools
from kombu.common import maybe_declare
from kombu.connection import Connection
from kombu.exceptions import KombuError, OperationalError
from kombu.messaging import Producer

from celery_admin_runner.encoding import storable_text, text_of
from celery_admin_runner.redaction import scrub

#: How long a connection, and an answer, of the broker is waited for, in seconds.
#: Two tries and what lies between them stay within five seconds.
BROKER_TIMEOUT = 1.5
#: kombu would try for ever; a user waits for the answer.
RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
#: The timeouts that a transport wants among its options. After one Redis must not get a message
#: once more, whatever the project's own options say: it may have it.
TRANSPORT_TIMEOUTS: Mapping[str, Mapping[str, float]] = {
    "redis": {
        "socket_connect_timeout": BROKER_TIMEOUT,
        "socket_timeout": BROKER_TIMEOUT,
        "retry_on_timeout": False,
    },
    "amqp": {"read_timeout": BROKER_TIMEOUT, "write_timeout": BROKER_TIMEOUT},
}
#: What kombu 5.7 raises for a broker's address that it can't read or has no library for.
UNUSABLE_ADDRESS = (ImportError, LookupError, TypeError, ValueError)
#: By these kombu's file system transport stumbles over an error of its own: kombu 5.7
#: tries again on a channel that is closed, 5.5 tidies up what it never opened.
STUMBLES = (AttributeError, UnboundLocalError)
#: How long RabbitMQ's confirmations are waited for, in seconds: it may have to write to disk.
CONFIRMED_WITHIN = 5.0
#: kombu's name for the library by which RabbitMQ can confirm.
CONFIRMING_DRIVER = "py-amqp"
#: What is told of a message that RabbitMQ answered with a "nack".
NACKED = "The broker refused it: its queue takes no more."
#: And of one whose sending was broken off, as by Ctrl-C: nobody knows how far it came.
BROKEN_OFF = "The sending was broken off."


class BrokerAway(Exception):
    """The broker can't be reached, or was lost; the message says why."""


class Stage(Enum):
    """How far the sending of a message came."""

    #: Nothing was asked of the broker.
    BEFORE = 1
    #: The broker was asked for the queue; the message is still here.
    DECLARING = 2
    #: The message, or a part of it, may have reached the broker.
    WIRE = 3


def bounded_connection(app: Celery, **transport_options: Any) -> Connection:
    """Return an unopened connection to the app's broker that waits for nothing long."""
    plain = app.connection_for_write()
    timeouts = TRANSPORT_TIMEOUTS.get(plain.transport.driver_type, {})
    bounded: Connection = app.connection_for_write(
        connect_timeout=BROKER_TIMEOUT,
        transport_options={
            **timeouts,
            **RETRY_POLICY,
            "connect_retries_timeout": 2 * BROKER_TIMEOUT,
            **transport_options,
        },
    )
    return bounded


def shared_connection(app: Celery) -> Connection:
    """Return the same bounded connection for one broker each time: a pool is known by it.

    It is never opened: kombu's pools open copies of it.
    """
    conf = app.conf
    # As texts: of several addresses there may be a list.
    return _shared_connection(
        app, repr(conf.broker_write_url), repr(conf.broker_transport_options)
    )


@lru_cache(maxsize=8)
def _shared_connection(app: Celery, address: str, options: str) -> Connection:
    return bounded_connection(app)


def broker_errors(connection: Connection) -> tuple[type[Exception], ...]:
    """Return the errors by which a broker says that it did not take a message."""
    return (
        KombuError,
        OSError,
        QueueNotFound,
        *STUMBLES,
        *connection.connection_errors,
        *connection.channel_errors,
    )


def describe(error: Exception, connection: Connection) -> str:
    """Return what a broker's error says, without the broker's password."""
    secrets = [connection.password] if connection.password else []
    return storable_text(scrub(f"{type(error).__name__}: {text_of(error)}", secrets))


def describe_address(error: Exception) -> str:
    """Return what is wrong with a broker's address, without quoting it: it holds a password."""
    detail = f": {error}" if isinstance(error, ImportError) else ""
    return f"The settings name a broker that can't be used: {type(error).__name__}{detail}."


class Outlet:
    """An open connection by which many messages go out, each tried once.

    RabbitMQ confirms them while later ones are written; other brokers answer each at once.
    What became of a message is told by its key, once ``finish`` was called.
    """

    def __init__(self, connection: Connection) -> None:
        """Open a channel on a connection; raises what the broker raises."""
        self.connection = connection
        self.confirms = connection.transport.driver_name == CONFIRMING_DRIVER
        #: What the broker said of messages that it did not take for certain, and of those
        #: of which nobody knows whether it took them; by their keys.
        self.refused: dict[str, str] = {}
        self.unclear: dict[str, str] = {}
        #: The keys of the messages that are not confirmed, by their number on the channel.
        self._open: dict[int, str] = {}
        self._key = ""
        #: Queues are declared by a channel of their own: what RabbitMQ refuses, it answers by
        #: closing the channel, and with it go the confirmations that are still to come.
        self._declaring: Any = None
        #: What was declared, by its id. kombu 5.7 remembers it too, but binds each to the
        #: channel before it looks.
        self._declared: dict[int, Any] = {}
        #: To an exchange that has taken a message others can follow unconfirmed.
        self._known_exchanges = {""}
        self.producer = _Producer(self)
        self._take_channel()

    def begin(self, key: str) -> None:
        """Begin with the next message; ``posted`` or ``failed`` ends that."""
        self._key = key
        self.unclear[key] = BROKEN_OFF
        self.producer.stage = Stage.BEFORE

    def posted(self) -> None:
        """Note that the message in hand was sent, as far as one knows before ``finish``."""
        del self.unclear[self._key]

    def failed(self, error: Exception) -> None:
        """Note what became of the message in hand, the sending of which raised this.

        Raises BrokerAway if the connection is of no use any more; a message that is neither
        in ``refused`` nor in ``unclear`` then was not tried.
        """
        if isinstance(error, OperationalError) and isinstance(error.__cause__, Exception):
            # So Celery wraps what the broker's own library raises.
            error = error.__cause__
        is_told = isinstance(error, BrokerAway)
        stage, text = self.producer.stage, str(error) if is_told else self.describe(error)
        is_lost = stage != Stage.BEFORE and self._is_lost(error)
        del self.unclear[self._key]
        if stage == Stage.WIRE and self._is_refusal(error):
            self._open.clear()
            self.refused[self._key] = text
        elif stage == Stage.WIRE:
            self.unclear[self._key] = text
            if not is_lost and not isinstance(error, self.connection.channel_errors):
                # It went wrong here: what was written before can still be confirmed.
                self.finish()
            self._leave_open(text)
        elif not is_lost:
            self.refused[self._key] = text
        if is_lost:
            # With the connection go the confirmations that are still to come.
            self._leave_open(text)
            raise BrokerAway(text) from error
        if stage == Stage.WIRE:
            # RabbitMQ has closed it, or half a message stands in it.
            self._take_another_channel()

    def finish(self) -> None:
        """Wait until all that was written is confirmed; raises BrokerAway."""
        deadline = monotonic() + CONFIRMED_WITHIN
        try:
            while self._open:
                self.connection.drain_events(timeout=max(deadline - monotonic(), 0.001))
        except self.connection.channel_errors as error:
            self._leave_open(self.describe(error))
            self._take_another_channel()
        except (OSError, *self.connection.connection_errors) as error:
            self._leave_open(self.describe(error))
            raise BrokerAway(self.describe(error)) from error

    def give_up(self) -> None:
        """Wait no more for what is not confirmed: nobody will ever know of it."""
        self._leave_open(BROKEN_OFF)

    def describe(self, error: Exception) -> str:
        """Return what an error says, without the broker's password."""
        return describe(error, self.connection)

    def declare(self, entity: Any) -> None:
        """Make sure that a queue or an exchange exists; asks the broker once a connection."""
        if id(entity) in self._declared:
            return
        if not self.confirms:
            maybe_declare(entity, self.producer.channel)
        else:
            if self._declaring is None:
                self._declaring = self.connection.channel()
            try:
                maybe_declare(entity, self._declaring)
            except self.connection.channel_errors:
                self._declaring = None
                raise
        self._declared[id(entity)] = entity

    def knows(self, exchange: str) -> bool:
        """Tell whether what is sent to an exchange can't close the channel."""
        return not self.confirms or exchange in self._known_exchanges

    def learn(self, exchange: str) -> None:
        """Wait for the message in hand, the first to this exchange; raises what that raises."""
        deadline = monotonic() + CONFIRMED_WITHIN
        while self._open:
            self.connection.drain_events(timeout=max(deadline - monotonic(), 0.001))
        self._known_exchanges.add(exchange)

    def written(self) -> None:
        """Note that the message in hand was written."""
        if self.confirms:
            self._number += 1
            self._open[self._number] = self._key

    def _is_refusal(self, error: Exception) -> bool:
        """Tell whether the broker refused the message in hand by an error, and no other."""
        is_alone = set(self._open.values()) <= {self._key}
        return isinstance(error, self.connection.channel_errors) and is_alone

    def _is_lost(self, error: Exception) -> bool:
        """Tell whether an error means that the connection is of no use any more."""
        if isinstance(error, self.connection.channel_errors):
            return False
        # Also where what was written before was waited for.
        return isinstance(error, (BrokerAway, OSError, *self.connection.connection_errors))

    def _leave_open(self, text: str) -> None:
        """Give up what is not confirmed: nobody will ever know."""
        self.unclear.update(dict.fromkeys(self._open.values(), text))
        self._open.clear()

    def _take_another_channel(self) -> None:
        try:
            self._take_channel()
        except (OSError, *self.connection.connection_errors) as error:
            raise BrokerAway(self.describe(error)) from error

    def _take_channel(self) -> None:
        channel = self.connection.channel()
        self.producer.revive(channel)  # type: ignore[no-untyped-call]
        self._number = 0
        if self.confirms:
            channel.confirm_select()
            channel.events["basic_ack"].add(self._on_ack)
            channel.events["basic_nack"].add(self._on_nack)

    def _on_ack(self, number: int, multiple: bool) -> None:
        for each in self._numbers(number, multiple):
            self._open.pop(each, None)

    def _on_nack(self, number: int, multiple: bool) -> None:
        for each in self._numbers(number, multiple):
            key = self._open.pop(each, None)
            if key is not None:
                self.refused[key] = NACKED

    def _numbers(self, number: int, multiple: bool) -> list[int]:
        return [each for each in self._open if each <= number] if multiple else [number]


@contextmanager
def open_outlet(app: Celery) -> Iterator[Outlet]:
    """Open an outlet to the app's broker, and close it at the end; raises BrokerAway."""
    try:
        # It confirms each message by itself, if the project's settings say so.
        connection = bounded_connection(app, confirm_publish=False)
    except UNUSABLE_ADDRESS as error:
        raise BrokerAway(describe_address(error)) from error
    errors = broker_errors(connection)
    try:
        outlet = Outlet(connection)
    except errors as error:
        connection.release()
        raise BrokerAway(describe(error, connection)) from error
    try:
        yield outlet
    finally:
        with suppress(*errors):
            connection.release()


class WatchedProducer(Producer):
    """Sends a message, and knows whether that may have reached the broker."""

    may_have_sent = False

    def _publish(self, *args: Any, **kwargs: Any) -> Any:
        """Write the message (kombu 5.5 to 5.7), which was encoded before."""
        self.may_have_sent = True
        return super()._publish(*args, **kwargs)  # type: ignore[no-untyped-call]


class _Producers(pools.Producers):
    """Pools of watched producers; their connections are those of kombu's own pools."""

    def create(self, connection: Connection, limit: int | None) -> pools.ProducerPool:
        return pools.ProducerPool(
            pools.connections[connection], limit=limit, Producer=WatchedProducer
        )


_pools = _Producers(limit=pools.use_global_limit)  # type: ignore[no-untyped-call]
#: By an app's connection, as ``kombu.pools.producers``.
producers = pools.register_group(_pools)


class _Producer(Producer):
    """Sends each message in one try, and knows how far it came."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.stage = Stage.BEFORE
        super().__init__(None, auto_declare=False)  # type: ignore[no-untyped-call]

    def publish(self, *args: Any, **options: Any) -> Any:
        """Send a message, or raise what the broker raises.

        Celery may send an event after the message: from then on something is out.
        """
        is_first = self.stage == Stage.BEFORE
        if is_first:
            self.stage = Stage.DECLARING
        for entity in options.pop("declare", None) or ():
            self.outlet.declare(entity)
        exchange = options.get("exchange")
        name = str(getattr(exchange, "name", exchange) or "")
        is_known = self.outlet.knows(name)
        if not is_known:
            self.outlet.finish()
        self._is_first, self.stage = is_first, Stage.WIRE
        published = super().publish(*args, **{**options, "retry": False})  # type: ignore[no-untyped-call]
        self.outlet.written()
        if not is_known:
            self.outlet.learn(name)
        return published

    def _prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Encode the message (kombu 5.5 to 5.7): what fails here is not on the wire."""
        self.stage = Stage.BEFORE if self._is_first else Stage.WIRE
        prepared = super()._prepare(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.stage = Stage.WIRE
        return prepared
