"""Requests to stop: raised where nothing is lost, noted where something would be."""

from __future__ import annotations

import signal
import threading

import pytest

from vmamba.training.interruption import SIGNALS, Interrupted, StopRequests


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: signal.Signals(n).name)
def test_before_and_after_the_start(number: signal.Signals) -> None:
    previous = signal.getsignal(number)
    with StopRequests(), pytest.raises(Interrupted, match="before the first step; give the same command again"):
        signal.raise_signal(number)
    assert signal.getsignal(number) == previous
    with StopRequests() as stop:
        stop.defer()
        signal.raise_signal(number)
        assert stop.pending
        with pytest.raises(Interrupted, match="while validating"):
            stop.check("while validating")
    assert signal.getsignal(number) == previous


def test_nothing_is_raised_in_the_midst_of_a_run() -> None:
    with StopRequests() as stop:
        stop.defer()
        stop.check("nothing was asked")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="now"):
            stop.check("now")


def test_request_between_setup_and_start() -> None:
    stop = StopRequests()
    stop.pending = True
    with pytest.raises(Interrupted):
        stop.defer()


def test_second_ctrl_c() -> None:
    with StopRequests() as stop:
        stop.defer()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_in_another_thread() -> None:
    """Python allows no handlers there; a run works without."""
    outcome: list[bool] = []

    def run() -> None:
        with StopRequests() as stop:
            stop.defer()
            outcome.append(stop.pending)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert outcome == [False]


def test_a_request_is_not_taken_for_a_broken_file() -> None:
    def read() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise AssertionError from error

    with StopRequests(), pytest.raises(Interrupted):
        read()
