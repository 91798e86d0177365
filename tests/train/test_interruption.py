"""A signal raises where it may, waits where it must, and never twice."""

import os
import signal

import pytest

from d2v_jax.train.interruption import Interrupted, Interruption


def send(signum):
  os.kill(os.getpid(), signum)


@pytest.mark.parametrize(('signum', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_raised_at_once_with_the_exit_code(signum, code):
  with Interruption().installed(), pytest.raises(Interrupted) as caught:
    send(signum)
  assert caught.value.code == code and str(caught.value) == signal.Signals(signum).name


def test_waits_for_the_end_of_a_shielded_part():
  reached = []
  with Interruption().installed() as interruption, pytest.raises(Interrupted):
    with interruption.shielded():
      send(signal.SIGTERM)
      send(signal.SIGINT)
      reached.append('end')
    reached.append('after')
  assert reached == ['end']


def test_later_signals_do_not_disturb_the_saving():
  with Interruption().installed() as interruption:
    with pytest.raises(Interrupted):
      send(signal.SIGTERM)
    send(signal.SIGTERM)
    send(signal.SIGINT)
    with interruption.shielded():
      send(signal.SIGTERM)


def test_handlers_are_put_back():
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  with Interruption().installed():
    pass
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_nothing_that_catches_errors_swallows_it():
  assert not issubclass(Interrupted, Exception)
