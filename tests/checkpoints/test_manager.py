"""Checkpoints: bit for bit, whole or reported, on any number of devices; nothing of another model is taken for ours."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from d2v_jax.checkpoints import manager as managers
from d2v_jax.checkpoints.manager import CheckpointManager
from d2v_jax.errors import InputError, RunError
from d2v_jax.train import optimizer as optimizers
from d2v_jax.train.state import TrainState
from tests.train.tiny import get_config

# Orbax leaves coroutines behind when it cannot read a file.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def state_at(step, shape=(8, 64), dtype=np.float32, **extra):
  rng = np.random.default_rng(step)
  draw = lambda *size: jnp.asarray(rng.normal(0, 1, size), dtype)
  params = {'encoder': {'kernel': draw(*shape), 'bias': draw(3)} | extra, 'decoder': {'kernel': draw(4, 4)}}
  state = optimizers.build(get_config()).init(params)
  state = jax.tree.map(lambda leaf: leaf + step if leaf.ndim == 0 else draw(*leaf.shape), state)
  teacher = {'encoder': jax.tree.map(lambda leaf: leaf + 1, params['encoder'])}
  return TrainState(jnp.int32(step), params, teacher, state)


def target_of(state, sharding=None):
  sharding = sharding or (lambda leaf: SingleDeviceSharding(jax.devices()[0]))
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf)), state)


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert ours.dtype == theirs.dtype
    assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def save(workdir, *steps, keep_every=0):
  manager = CheckpointManager(workdir, get_config(), keep_every)
  for step in steps:
    manager.save(state_at(step))
  manager.close()


def restore(workdir, target=None):
  manager = CheckpointManager(workdir, get_config())
  try:
    return manager.restore_latest(target or target_of(state_at(0)))
  finally:
    manager.close()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('saved')
  save(workdir, 2, 4)
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  """A copy of a workdir with the checkpoints 2 and 4."""
  shutil.copytree(saved / 'checkpoints', tmp_path / 'checkpoints')
  return tmp_path


def test_the_newest_state_comes_back_bit_for_bit(workdir):
  found = restore(workdir)
  assert int(found.step) == 4
  assert_same(found, state_at(4))


def test_a_state_without_a_teacher_comes_back_too(tmp_path):
  state = state_at(2).replace(teacher={})
  manager = CheckpointManager(tmp_path, get_config())
  manager.save(state)
  manager.close()
  assert_same(restore(tmp_path, target_of(state)), state)


def test_no_checkpoint_is_none(tmp_path):
  assert restore(tmp_path) is None


def test_a_step_is_saved_once(workdir):
  manager = CheckpointManager(workdir, get_config())
  before = (workdir / 'checkpoints' / '4' / '_CHECKPOINT_METADATA').stat().st_mtime_ns
  manager.save(state_at(4), wait=True)
  manager.close()
  assert (workdir / 'checkpoints' / '4' / '_CHECKPOINT_METADATA').stat().st_mtime_ns == before


def test_the_newest_two_and_the_permanent_ones_are_kept(tmp_path):
  save(tmp_path, 2, 4, 6, 8, 10, 12, keep_every=6)
  manager = CheckpointManager(tmp_path, get_config(), 6)
  assert manager.steps() == [6, 10, 12]
  manager.close()


def test_a_state_may_change_while_it_is_saved_in_the_background(tmp_path):
  """The train step donates its state: the next step writes where the saved one was."""
  manager = CheckpointManager(tmp_path, get_config())
  overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
  big = state_at(2, (512, 512))
  manager.save(big)
  overwrite(big)
  manager.close()
  expected = state_at(2, (512, 512))
  assert_same(restore(tmp_path, target_of(expected)), expected)


# --- damage


def largest(folder):
  return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
  path = largest(folder)
  os.truncate(path, path.stat().st_size // 2)


def flip(folder):
  path = largest(folder)
  content = bytearray(path.read_bytes())
  for place in range(len(content) // 2, len(content), 64):
    content[place] ^= 0x55
  path.write_bytes(content)


DAMAGES = {'truncated': truncate, 'flipped': flip, 'removed': shutil.rmtree}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('item', ['params', 'teacher', 'optimizer', 'meta'])
def test_a_damaged_checkpoint_is_reported_put_aside_and_the_one_before_is_used(workdir, caplog, item, damage):
  DAMAGES[damage](workdir / 'checkpoints' / '4' / item)
  assert_same(restore(workdir), state_at(2))
  warnings = [record.getMessage() for record in caplog.records if 'is damaged' in record.getMessage()]
  assert len(warnings) == 1 and str(workdir / 'checkpoints' / '4') in warnings[0] and '\n' not in warnings[0]
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['2', 'damaged-4']


def test_a_flipped_bit_that_still_decodes_is_noticed(workdir, monkeypatch):
  """Where the file format has no checksum the fingerprint has."""
  other = state_at(4)
  other.params['encoder']['bias'] = other.params['encoder']['bias'].at[1].set(0.1)
  describe = managers._fingerprints
  monkeypatch.setattr(managers, '_fingerprints', lambda items: describe(managers._items(state_at(4))))
  shutil.rmtree(workdir / 'checkpoints' / '4')
  manager = CheckpointManager(workdir, get_config())
  manager.save(other)
  manager.close()
  monkeypatch.undo()
  assert int(restore(workdir).step) == 2


def test_training_goes_on_after_damage_and_again_after_damage_to_the_same_step(workdir):
  for _ in range(2):
    truncate(workdir / 'checkpoints' / '4' / 'params')
    assert int(restore(workdir).step) == 2
    save(workdir, 4)
    assert_same(restore(workdir), state_at(4))


def test_all_damaged_is_one_line_and_leaves_everything_where_it_is(workdir):
  for step in ('2', '4'):
    truncate(workdir / 'checkpoints' / step / 'params')
  with pytest.raises(InputError) as caught:
    restore(workdir)
  text = str(caught.value)
  assert str(workdir / 'checkpoints') in text and '[4, 2]' in text and '\n' not in text
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['2', '4']


# --- another model


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'shape': (8, 65)}, 'encoder/kernel is float32[8, 64] in the checkpoint, float32[8, 65] in this config'),
    ({'shape': (512,)}, 'float32[8, 64] in the checkpoint, float32[512] in this config'),
    ({'dtype': jnp.bfloat16}, 'float32[4, 4] in the checkpoint, bfloat16[4, 4] in this config'),
    ({'scale': np.ones(2, np.float32)}, '/scale is nothing in the checkpoint, float32[2] in this config'),
  ],
  ids=['wider', 'flat', 'dtype', 'one more'],
)
def test_arrays_of_another_model_are_refused_by_name(workdir, changes, named):
  with pytest.raises(InputError) as caught:
    restore(workdir, target_of(state_at(0, **changes)))
  text = str(caught.value)
  assert named in text and str(workdir / 'checkpoints' / '4') in text and '\n' not in text
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['2', '4']


def test_an_array_too_many_in_the_checkpoint_is_refused(workdir):
  target = target_of(state_at(0))
  del target.params['encoder']['bias']
  with pytest.raises(InputError, match=r'params/encoder/bias is float32\[3\] in the checkpoint, nothing in this config'):
    restore(workdir, target)


# --- devices


def test_a_checkpoint_moves_from_four_devices_to_two_to_one(tmp_path):
  def spread(count):
    mesh = jax.make_mesh((count,), ('fsdp',), devices=jax.devices()[:count])
    spec = lambda leaf: PartitionSpec(None, 'fsdp') if leaf.shape == (8, 64) else PartitionSpec()
    return lambda leaf: NamedSharding(mesh, spec(leaf))

  expected = state_at(2)
  state = jax.tree.map(lambda leaf: jax.device_put(leaf, spread(4)(leaf)), expected)
  for step, count in enumerate((4, 2, 1)):
    manager = CheckpointManager(tmp_path / str(step), get_config())
    manager.save(state)
    manager.close()
    following = (2, 1, 1)[step]
    state = restore(tmp_path / str(step), target_of(expected, spread(following)))
    assert_same(state, expected)
    kernel = state.params['encoder']['kernel']
    assert kernel.addressable_shards[0].data.shape == (8, 64 // following), count


# --- disk full


@pytest.fixture
def small_disk(tmp_path):
  """A file system of two megabytes."""
  if os.geteuid():
    pytest.skip('needs root, to mount a small file system')
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(tmp_path)]
  try:
    done = subprocess.run(mount, capture_output=True, text=True)
  except FileNotFoundError:
    pytest.skip('there is no mount command')
  if done.returncode:
    pytest.skip(f'cannot mount a small file system: {done.stderr.strip()}')
  yield tmp_path
  subprocess.run(['umount', '--lazy', str(tmp_path)], check=True)


def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoint_whole(small_disk):
  manager = CheckpointManager(small_disk, get_config())
  manager.save(state_at(2), wait=True)
  (small_disk / 'filler').write_bytes(b'x' * (2 * 1024 * 1024 - _used(small_disk) - 3 * 4096))
  with pytest.raises(RunError) as caught:
    manager.save(state_at(4), wait=True)
  text = str(caught.value)
  for part in (str(small_disk / 'checkpoints'), 'cannot save a checkpoint', 'step 2', 'Make room'):
    assert part in text
  assert '\n' not in text
  (small_disk / 'filler').unlink()
  assert_same(restore(small_disk), state_at(2))
  save(small_disk, 4)
  assert_same(restore(small_disk), state_at(4))


def _used(folder):
  stats = os.statvfs(folder)
  return (stats.f_blocks - stats.f_bfree) * stats.f_frsize


# --- weights alone


@pytest.mark.parametrize('below', ['.', 'checkpoints', 'checkpoints/4'])
def test_weights_are_read_from_a_workdir_its_checkpoints_or_one_of_them(saved, below):
  params, teacher, config = managers.load_weights(saved / below)
  assert_same((params, teacher), jax.tree.map(np.asarray, (state_at(4).params, state_at(4).teacher)))
  assert config.model.embed_dim == get_config().model.embed_dim


def test_weights_of_an_older_step(saved):
  assert_same(managers.load_weights(saved / 'checkpoints' / '2')[0], jax.tree.map(np.asarray, state_at(2).params))


def test_weights_without_a_teacher(tmp_path):
  params = jax.tree.map(np.asarray, state_at(1).params)
  managers.save_weights(tmp_path / 'weights', params, None, get_config())
  found, teacher, _ = managers.load_weights(tmp_path / 'weights')
  assert teacher is None
  assert_same(found, params)
  with pytest.raises(InputError, match='is not empty'):
    managers.save_weights(tmp_path / 'weights', params, None, get_config())


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_weights_are_named(workdir, damage):
  DAMAGES[damage](workdir / 'checkpoints' / '4' / 'params')
  with pytest.raises(InputError, match=str(workdir / 'checkpoints' / '4')) as caught:
    managers.load_weights(workdir)
  assert '\n' not in str(caught.value)


def test_weights_that_cannot_be_written_are_a_failed_run(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(RunError, match=r'file/below: cannot write the weights'):
    managers.save_weights(Path(tmp_path) / 'file' / 'below', state_at(1).params, None, get_config())


# --- what weights mean nothing without

ASSETS = {'tokenizer': '{"text": "with \\u00e9 and \\n"}', 'labels': ['no', 'yes', '\u00e9']}


def test_assets_are_saved_with_every_checkpoint_and_read_without_its_arrays(tmp_path):
  manager = CheckpointManager(tmp_path, get_config(), assets=ASSETS)
  manager.save(state_at(2))
  manager.save(state_at(4))
  manager.close()
  assert_same(restore(tmp_path), state_at(4))
  shutil.rmtree(tmp_path / 'checkpoints' / '4' / 'optimizer')
  for place in ('.', 'checkpoints', 'checkpoints/2', 'checkpoints/4'):
    config, assets = managers.load_meta(tmp_path / place)
    assert assets == ASSETS and config.model.embed_dim == get_config().model.embed_dim


def test_assets_of_converted_weights(tmp_path):
  managers.save_weights(tmp_path / 'with', state_at(1).params, None, get_config(), ASSETS)
  assert managers.load_meta(tmp_path / 'with')[1] == ASSETS
  managers.save_weights(tmp_path / 'without', state_at(1).params, None, get_config())
  assert managers.load_meta(tmp_path / 'without')[1] == {}


def test_a_checkpoint_from_before_there_were_assets_has_none(workdir):
  path = workdir / 'checkpoints' / '4' / 'meta' / 'metadata'
  meta = json.loads(path.read_text())
  assert meta.pop('assets') == {}
  path.write_text(json.dumps(meta))
  assert managers.load_meta(workdir)[1] == {}
  assert_same(restore(workdir), state_at(4))


def test_no_assets_where_there_is_no_checkpoint_or_a_damaged_one(workdir, tmp_path_factory):
  empty = tmp_path_factory.mktemp('empty')
  with pytest.raises(InputError, match=rf'{empty}: is no checkpoint of ours'):
    managers.load_meta(empty)
  truncate(workdir / 'checkpoints' / '4' / 'meta')
  with pytest.raises(InputError, match=rf'{workdir}/checkpoints/4: damaged checkpoint') as caught:
    managers.load_meta(workdir)
  assert '\n' not in str(caught.value)
