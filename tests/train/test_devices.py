"""One program for one device and for many: the same numbers on every mesh."""

import functools

import jax
import numpy as np
import pytest

from d2v_jax.errors import InputError
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.parallel import mesh as meshes
from d2v_jax.train import optimizer as optimizers
from d2v_jax.train.state import TrainState
from d2v_jax.train.step import abstract_state, sharded_init, sharded_step
from tests.train.tiny import FAST, get_config, random_params

STEPS = 3


def config_on(fsdp=1, accumulate=1):
  config = get_config()
  config.learning_rate = 0.01
  config.accumulate_steps = accumulate
  config.model.update(embed_dim=32, depth=1)
  config.decoder.update(dim=32)
  config.data2vec2.average_top_k = 1
  config.schedule.warmup_steps = 0
  config.mesh.fsdp = fsdp
  return config


def batches():
  rng = np.random.default_rng(0)
  for step in range(STEPS):
    valid = np.ones(8, bool)
    valid[step] = False
    yield {'image': rng.integers(0, 256, (8, 16, 16, 3), np.uint8), 'label': np.full(8, -1, np.int32), 'valid': valid}


@functools.cache
def run_on(devices, fsdp=1, accumulate=1):
  """Three steps of the real step function; returns the metrics of each, the final state and the mesh."""
  config = config_on(fsdp, accumulate)
  method = Data2vec2(config)
  mesh = meshes.build(config, jax.devices()[:devices])
  params = random_params(method, 0)
  fresh = TrainState(np.int32(0), params, {'encoder': params['encoder']}, optimizers.build(config).init(params))
  place = lambda leaf, like: jax.device_put(np.array(leaf), like.sharding)
  state = jax.tree.map(place, fresh, abstract_state(method, config, mesh))
  step = None
  found = []
  for batch in batches():
    batch = meshes.global_batch(mesh, batch)
    if step is None:
      step = sharded_step(method, config, STEPS + 1, mesh).lower(state, batch).compile(FAST)
    state, metrics = step(state, batch)
    found.append({name: float(value) for name, value in jax.device_get(metrics).items()})
  return found, state, mesh


@pytest.fixture(autouse=True)
def split_small_arrays(monkeypatch):
  monkeypatch.setattr(meshes, 'SMALLEST_SPLIT', 512)


@pytest.mark.parametrize(
  ('devices', 'fsdp', 'accumulate'), [(2, 1, 1), (4, 1, 1), (4, 2, 2), (4, 4, 1)], ids=['2x1', '4x1', '2x2 micro', '1x4']
)
def test_every_mesh_gives_the_numbers_of_one_device(devices, fsdp, accumulate):
  expected, expected_state, _ = run_on(1)
  found, state, mesh = run_on(devices, fsdp, accumulate)
  assert dict(mesh.shape) == {'data': devices // fsdp, 'fsdp': fsdp}
  for step in range(STEPS):
    for name in expected[step]:
      np.testing.assert_allclose(found[step][name], expected[step][name], rtol=1e-4, err_msg=f'{name}, step {step}')
  kernel = lambda state: state.params['encoder']['block_0']['mlp']['fc1']['kernel']
  np.testing.assert_allclose(kernel(state), kernel(expected_state), atol=2e-3)
  # Large arrays are split over `fsdp`, and only over it; small ones are whole everywhere.
  for tree in (state.params, state.teacher, state.opt_state):
    kernel = next(leaf for leaf in jax.tree.leaves(tree) if leaf.shape == (32, 128))
    assert kernel.addressable_shards[0].data.shape == (32, 128 // fsdp)
    assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(tree))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree) if leaf.size < 512)


def test_init_is_the_same_on_every_mesh():
  config = config_on(fsdp=4)
  method = Data2vec2(config)
  one, four = (sharded_init(method, config, meshes.build(config_on(fsdp), jax.devices()[:fsdp])).params for fsdp in (1, 4))
  jax.tree.map(np.testing.assert_array_equal, one, four)


@pytest.mark.parametrize(
  ('axes', 'batch', 'named'),
  [
    ({'data': -1, 'fsdp': 3}, 8, ('config.mesh', "'fsdp': 3", '4 devices')),
    ({'data': 2, 'fsdp': 1}, 8, ('config.mesh', "'data': 2", '4 devices')),
    ({'data': -1, 'fsdp': 2}, 6, ('config.batch_size: 6', '4 devices', 'multiple of 4')),
    ({'data': -1, 'fsdp': 0}, 8, ('config.mesh', '0')),
    ({'data': -1, 'fsdp': -1}, 8, ('config.mesh',)),
    ({'data': -2, 'fsdp': -2}, 8, ('config.mesh',)),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(axes, batch, named):
  config = get_config()
  config.mesh.update(axes)
  config.batch_size = batch
  with pytest.raises(InputError) as caught:
    meshes.build(config, jax.devices()[:4])
  for part in named:
    assert part in str(caught.value)


def test_micro_batches_must_divide_too():
  config = get_config()
  config.accumulate_steps = 4
  with pytest.raises(InputError, match=r'8 is not divisible by 4 devices x 4 .*multiple of 16'):
    meshes.build(config, jax.devices()[:4])
