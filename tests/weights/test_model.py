"""Features through the public door, `d2v_jax.load`, against the reference's; and the convert command."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import d2v_jax
from d2v_jax import convert
from d2v_jax.checkpoints import fairseq, manager
from d2v_jax.errors import InputError
from tests.weights.test_fairseq import CASES, FORMS, GOLDEN, assert_same


def reference(case, form='checkpoint.pt'):
  """(images NHWC, features [examples, tokens, width]) of the reference."""
  with np.load(case / 'checkpoint_expected.npz') as expected:
    name = 'features_from_fp16/x' if 'fp16' in form else 'features/x'
    return expected['source'].transpose(0, 2, 3, 1), expected[name]


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('case', CASES, ids=lambda path: path.name)
def test_features_are_the_references(case, form):
  images, expected = reference(case, form)
  features = d2v_jax.load(case / form).features(images)
  assert features.dtype == np.float32
  assert_close(features, expected)


@pytest.fixture(scope='module')
def model():
  return d2v_jax.load(GOLDEN / 'd2v2_image' / 'checkpoint.pt')


def test_pixels_are_normalised(model):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  assert_close(model.features(pixels), model.features((pixels / 255 - mean) / std))


def test_examples_do_not_depend_on_each_other(model):
  images, _ = reference(GOLDEN / 'd2v2_image')
  assert_close(model.features(images)[1:], np.asarray(model.features(images[1:])))


@pytest.mark.parametrize(
  ('images', 'named'),
  [
    (np.zeros((2, 3, 32, 32), np.float32), '[2, 3, 32, 32]'),
    (np.zeros((32, 32, 3), np.uint8), '[32, 32, 3]'),
    (np.zeros((1, 16, 16, 3), np.uint8), '[examples, 32, 32, 3]'),
    (np.zeros((1, 32, 32, 3), np.int64), 'int64'),
  ],
)
def test_images_that_do_not_fit(model, images, named):
  with pytest.raises(InputError) as error:
    model.features(images)
  assert named in str(error.value)


def test_nothing_to_load(tmp_path):
  for path in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(InputError, match=str(path)):
      d2v_jax.load(path)


@pytest.mark.parametrize('form', FORMS)
def test_converted_weights_are_the_same_bit_for_bit(tmp_path, capsys, form):
  source = GOLDEN / 'd2v2_image' / form
  convert.convert(source, tmp_path / 'out')
  printed = capsys.readouterr().out
  assert 'student: 62 tensors, 61 used, 1 unused, 132,240 parameters' in printed
  assert 'unused modality_encoders.IMAGE.fixed_positional_encoder.positions: ' in printed
  assert 'decoder/conv_*/kernel' in printed
  imported = fairseq.import_checkpoint(source)
  params, teacher, config = manager.load_weights(tmp_path / 'out')
  assert_same((params, teacher), (imported.params, imported.teacher))
  assert config.model.to_dict() == imported.config.model.to_dict()
  images, expected = reference(GOLDEN / 'd2v2_image', form)
  assert_close(d2v_jax.load(tmp_path / 'out').features(images), expected)
  with pytest.raises(InputError, match='not empty'):
    convert.convert(source, tmp_path / 'out')


def run(*arguments):
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  root = pathlib.Path(d2v_jax.__file__).parents[1]
  command = [sys.executable, '-m', 'd2v_jax.convert', *arguments]
  return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)


def test_the_command(tmp_path):
  options = ['--from=fairseq', '--to=orbax', f'--output={tmp_path / "out"}']
  done = run(*options, f'--input={GOLDEN / "d2v2_image" / "checkpoint.pt"}')
  assert done.returncode == 0, done.stderr
  assert 'student' in done.stdout
  assert jax.tree.leaves(manager.load_weights(tmp_path / 'out')[0])
  for wrong in ([*options, '--input=nowhere.pt'], ['--from=x', *options[1:], '--input=x']):
    failed = run(*wrong)
    assert failed.returncode == 2
    assert 'Traceback' not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_importing_the_package_is_light():
  code = (
    'import sys, d2v_jax; assert "jax" not in sys.modules; '
    'd2v_jax.load; assert not {"torch", "tensorflow"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
