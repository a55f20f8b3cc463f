"""The measurement of the websockets, small: that it measures, and that nothing gets lost."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.benchmarks import live

#: Longer than the look at the database that finds what nobody pushed.
FOUND_WITHIN = 15.0


@pytest.mark.skipif(not find_spec("channels"), reason="needs the extra [websocket]")
@pytest.mark.usefixtures("transactional_db")
def test_each_socket_hears_of_all_changes_of_its_own_runs_in_order() -> None:
    measured = live.measure_sockets(sockets=20, changes=10, seconds=3, idle=0)

    assert measured.is_right, measured
    assert measured.changes >= 20
    assert len(measured.latencies) == 2 * measured.changes
    assert measured.latency(100) < FOUND_WITHIN
    assert len(measured.usages) == 5
