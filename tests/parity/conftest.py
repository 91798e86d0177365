"""Parity with the PyTorch reference over every case directory in `$D2V_GOLDEN_DIR` (default: the copy in `tests/golden`).

`tests/golden/README.md` describes the files. A directory whose family is not known here is an error, not a skip.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

GOLDEN_DIR = Path(os.environ.get('D2V_GOLDEN_DIR') or Path(__file__).parents[1] / 'golden')


class Case:
  """One case directory: its config and its arrays, loaded when asked for."""

  def __init__(self, path: Path):
    self.path = path
    self.config = json.loads((path / 'config.json').read_text())
    self.family = self.config['family']
    self.modality = self.config.get('modality', '')

  def arrays(self, name: str, prefix: str = '') -> dict[str, np.ndarray]:
    """The arrays of NAME.npz whose keys start with `prefix`, which is taken off."""
    with np.load(self.path / f'{name}.npz', allow_pickle=False) as file:
      return {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}

  def __repr__(self):
    return self.path.name


CASES = [Case(path.parent) for path in sorted(GOLDEN_DIR.glob('*/config.json'))]
RUNNABLE = {('data2vec2', 'image'), ('data2vec2', 'audio'), ('data2vec2', 'text'), ('misc', '')}


def pytest_generate_tests(metafunc):
  for name, family in (('data2vec2_case', 'data2vec2'), ('misc_case', 'misc')):
    if name in metafunc.fixturenames:
      cases = [case for case in CASES if case.family == family and (family, case.modality) in RUNNABLE]
      metafunc.parametrize(name, cases, ids=repr, scope='module')


def pytest_report_header():
  return f'parity cases in {GOLDEN_DIR}: {", ".join(map(repr, CASES)) or "none"}'


@pytest.fixture(scope='session')
def all_cases():
  return CASES
