"""Every case directory is run, or named as one that cannot be."""

import pytest

from tests.parity.conftest import CASES, GOLDEN_DIR, RUNNABLE


def test_there_are_cases():
  assert CASES, f'no case in {GOLDEN_DIR}'


@pytest.mark.parametrize('case', CASES, ids=repr)
def test_case_can_be_run(case):
  assert (case.family, case.modality) in RUNNABLE, f'{case}: family {case.family!r} {case.modality!r} is not implemented'
