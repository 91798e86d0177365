"""The two ways a run can end badly. The commands turn them into exit codes and one line, never a traceback."""


class InputError(Exception):
  """The user's input or config is wrong: exit code 2. One line: field or file, what was found, what is allowed, the fix."""


class RunError(Exception):
  """The run itself failed (diverged, collapsed, could not save): exit code 1. One line with advice."""
