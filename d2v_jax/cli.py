"""What all commands share: flags, the exit codes, one line instead of a traceback when the user's input is wrong.

Exit codes: 0 done; 1 ran and failed; 2 the input or the config is wrong; 128 + signal after SIGINT or SIGTERM.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable
from logging import WARNING

from absl import flags, logging
from ml_collections import config_flags

from d2v_jax.config import default_config, field_names, known_fields
from d2v_jax.errors import InputError, RunError
from d2v_jax.train.interruption import Interrupted

_PACKAGE = os.path.dirname(__file__)


def define_config() -> flags.FlagHolder:
  """Defines `--config=FILE` with its `--config.field=value` overrides."""
  return config_flags.DEFINE_config_file('config', None, 'The config file, as configs/image_base.py.', lock_config=True)


def config_of(holder: flags.FlagHolder):
  """The config that was asked for; InputError when there is none or the file cannot be read."""
  path, config = _config_path(), holder.value
  if config is None and not path:
    raise InputError('--config: missing; give a config file, for example --config=configs/image_tiny.py')
  if config is None:
    raise InputError(f'--config: get_config() in {path} does not return a config; end it with `return config`')
  try:
    complete = default_config(config.get('modality', 'image'), config.get('task', 'pretrain'))
    missing = sorted(set(field_names(complete)) - set(field_names(config)))
  except OSError as error:  # of a file that could not be read, every attribute raises
    raise InputError(f'--config: {path} does not exist; give one of configs/*.py or your own') from error
  if missing:
    raise InputError(f'--config: {path} lacks {missing[0]} and {len(missing) - 1} more; start from default_config()')
  return config


def _config_path() -> str:
  return next((argument.partition('=')[2] for argument in sys.argv[1:] if argument.startswith('--config=')), '')


def required(holder: flags.FlagHolder, what: str) -> str:
  """The value of a flag that must be given."""
  if not holder.value:
    raise InputError(f'--{holder.name}: missing; give {what}')
  return holder.value


def run(main: Callable[[], None]) -> None:
  """Parses the flags, calls `main()` and exits with the code that its outcome deserves."""
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  logging.get_absl_handler().addFilter(_is_ours)
  sys.unraisablehook = _hide_late_callbacks
  try:
    _parse_flags()
    main()
  except InputError as error:
    _end(2, error)
  except RunError as error:
    _end(1, error)
  except Interrupted as interrupted:
    _end(interrupted.code, f'{interrupted} before the first step; nothing was changed')
  except KeyboardInterrupt:
    _end(130, 'interrupted')


def _is_ours(record) -> bool:
  """Whether a log record is for the user: Orbax and Grain tell dozens of details of every save at the same level."""
  if '/orbax/' in record.pathname:
    return False  # our manager says in one line what its pages of errors mean
  return record.levelno >= WARNING or _PACKAGE in record.pathname or 'parameter_overview' in record.pathname


def _hide_late_callbacks(unraisable):
  """TensorStore prints one traceback for every write that was pending when a save failed; the save itself is reported."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def _parse_flags():
  try:
    rest = flags.FLAGS(sys.argv)[1:]
  except (AttributeError, KeyError) as error:
    raise InputError(_unknown_field(error)) from error
  except Exception as error:
    raise InputError(_config_problem(error)) from error
  if rest:
    raise InputError(f'{rest[0]}: unexpected argument; options are written --name=value')


def _unknown_field(error) -> str:
  text = str(error).replace('\\', '')
  found = re.search(r'Key "([\w.]+)"', text)
  if found is None and any(argument.startswith('--config.') for argument in sys.argv[1:]):
    found = re.match(r"""["']*(\w+)["']""", text)
  if found is None:
    return _config_problem(error)
  found = found.group(1)
  given = next((a for a in sys.argv[1:] if re.match(rf'--config\.(\w+\.)*{found}(\.\w+)*=', a)), f'--config.{found}')
  name = given.removeprefix('--').partition('=')[0]
  known = known_fields()
  if name in known:
    return f'{name}: this config has no such field; configs to {known[name]} have it'
  nearest = difflib.get_close_matches(name, known, 1, 0.0)
  return f'{name}: there is no such field; the nearest is {nearest[0]}'


def _config_problem(error) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  if not isinstance(error, flags.Error):
    return f'--config: {_config_path()} cannot be loaded: {type(error).__name__}: {lines[0]}'
  # Of an error inside the file there comes a traceback; its last line says what was wrong.
  return lines[0] if len(lines) == 1 else f'{lines[0].partition(": ")[0]}: {lines[-1]}'


def _end(code, message):
  first = ' '.join(str(message).split())
  print(f'd2v_jax: {first}', file=sys.stderr, flush=True)
  logging.flush()
  # Worker processes and pending saves of a failed run must not keep it from ending.
  sys.stdout.flush()
  os._exit(code)
