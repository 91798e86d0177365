"""SIGTERM and SIGINT: save, then leave with the exit code the signal asks for."""

import contextlib
import signal


class Interrupted(BaseException):
  """Raised in the main thread by the first signal; `code` is the exit code. No Exception, so that nothing swallows it."""

  def __init__(self, signum: int):
    super().__init__(signal.Signals(signum).name)
    self.code = 128 + signum


class Interruption:
  """While installed, a signal raises `Interrupted`: at once while waiting or evaluating, after it where code is `shielded`.

  Polling between steps would miss a signal that comes during a long evaluation or while waiting for data.
  """

  def __init__(self):
    self._pending = None
    self._shielded = False
    self._done = False

  @contextlib.contextmanager
  def installed(self):
    previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
      yield self
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)

  @contextlib.contextmanager
  def shielded(self):
    """Signals wait until the end of this context: the train state has no valid value while a step donates it."""
    self._shielded = True
    try:
      yield
    finally:
      self._shielded = False
    if self._pending is not None and not self._done:
      self._raise(self._pending)

  def _handle(self, signum, frame):
    del frame
    if self._shielded:
      self._pending = signum
    elif not self._done:
      self._raise(signum)

  def _raise(self, signum):
    self._done = True  # what follows is the saving; further signals must not break it
    raise Interrupted(signum)
