"""`init_from`: weights of ours and of the reference, or a line that says why not."""

from pathlib import Path

import jax
import numpy as np
import pytest

from d2v_jax.checkpoints import fairseq, manager, weights
from d2v_jax.errors import InputError
from d2v_jax.methods.data2vec2 import Data2vec2
from tests.train.tiny import get_config, random_params

RELEASED = Path(__file__).parents[1] / 'golden' / 'd2v2_image' / 'checkpoint.pt'


@pytest.fixture
def ours(tmp_path):
  method = Data2vec2(get_config())
  params, teacher = random_params(method, 0), {'encoder': random_params(method, 1)['encoder']}
  manager.save_weights(tmp_path / 'with_teacher', params, teacher, get_config())
  return tmp_path, params, teacher


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_ours(ours):
  folder, params, teacher = ours
  found = weights.matching(folder / 'with_teacher', *jax.eval_shape(lambda *trees: trees, params, teacher))
  assert_same(found, (params, teacher))


def test_without_a_teacher_the_student_is_it(ours, tmp_path):
  _, params, teacher = ours
  manager.save_weights(tmp_path / 'alone', params, None, get_config())
  found, found_teacher = weights.matching(tmp_path / 'alone', params, teacher)
  assert_same(found_teacher, {'encoder': params['encoder']})
  # Student and teacher are donated together, so they must not share memory.
  ours, theirs = jax.tree.leaves(found['encoder']), jax.tree.leaves(found_teacher)
  assert not {leaf.unsafe_buffer_pointer() for leaf in ours} & {leaf.unsafe_buffer_pointer() for leaf in theirs}


def test_a_file_of_the_reference():
  imported = fairseq.import_checkpoint(RELEASED)
  method = Data2vec2(imported.config)
  params = jax.eval_shape(method.init, jax.random.key(0))
  found = weights.matching(RELEASED, params, jax.eval_shape(method.init_teacher, params))
  assert_same(found, (imported.params, imported.teacher))


def test_weights_of_another_model_are_refused_by_array_and_shapes(ours):
  folder, params, teacher = ours
  config = get_config()
  config.model.depth = 3
  deeper = jax.eval_shape(Data2vec2(config).init, jax.random.key(0))
  with pytest.raises(InputError, match=r'with_teacher: encoder/block_2/.* is missing there, \(.*\) in this config; use the'):
    weights.matching(folder / 'with_teacher', deeper, teacher)
  config.model.update(depth=2, embed_dim=32)
  wider = jax.eval_shape(Data2vec2(config).init, jax.random.key(0))
  with pytest.raises(InputError, match=r'decoder/conv_0/kernel is \(3, 3, 8, 16\) there, \(3, 3, 16, 16\) in this'):
    weights.matching(folder / 'with_teacher', wider, teacher)
  del params['decoder']['projection']
  with pytest.raises(InputError, match=r'decoder/projection/bias is \(16,\) there, not used in this config'):
    weights.matching(folder / 'with_teacher', params, teacher)


def test_nothing_there(tmp_path):
  for path in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(InputError, match=str(path)):
      weights.read(path)
