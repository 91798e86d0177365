"""What a user gets wrong ends with an exit code and one line: field or file, what was found, what is allowed, what to do."""

import os
import subprocess

import pytest

from d2v_jax.checkpoints import manager
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.train.workdir import open_workdir
from tests.train import tiny


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  return tiny.make_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A checkpoint of random weights."""
  folder = tmp_path_factory.mktemp('weights') / 'checkpoint'
  config = tiny.get_config()
  method = Data2vec2(config)
  params = tiny.random_params(method, 0)
  manager.save_weights(folder, params, {'encoder': params['encoder']}, config)
  return folder


def refused(done, *parts, code=2):
  text = tiny.message(done, code)
  for part in parts:
    assert str(part) in text, f'{part!r} is not in: {text}'


# --- flags and fields


@pytest.mark.parametrize(
  ('override', 'parts'),
  [
    ('--config.batchsize=3', ('config.batchsize: there is no such field', 'the nearest is config.batch_size')),
    ('--config.model.embeddim=3', ('config.model.embeddim: there is no such field', 'config.model.embed_dim')),
    ('--config.ctc.freeze_steps=3', ('config.ctc.freeze_steps: this config has no such field', 'ctc on audio')),
    ('--config.data.bucket_seconds=(1.0,)', ('config.data.bucket_seconds: this config has no such field', 'on audio')),
    ('--config.modality=audio', ('--config', 'lacks config.', 'default_config()')),
    ('--config.task=ctc', ('config.task', 'ctc on image', 'ctc on audio')),
    ('--config.batch_size=abc', ('config.batch_size', "'abc'", 'int')),
    ('--config.model.embed_dim=2.5', ('config.model.embed_dim', "'2.5'", 'int')),
    ('--config.learning_rate=fast', ('config.learning_rate', 'fast', 'float')),
    ('--config.batch_size=0', ('config.batch_size: found 0; allowed is at least 1',)),
    ('--config.dtype=flaot32', ('config.dtype', "'flaot32'", "'bfloat16', 'float32'", "did you mean 'float32'")),
    ('--config.data.image_size=18', ('config.data.image_size: 18', 'config.model.patch_size 4', '16 or 20')),
    ('--config.mesh.fsdp=0', ('config.mesh', '0')),
    ('--config.data.source=foldr:x', ("'foldr:x'", 'folder', "did you mean 'folder'")),
    ('--config.init_from=nowhere', ('config.init_from', 'nowhere does not exist', '.pt')),
    ('--nonsense=1', ("'nonsense'",)),
    ('nonsense', ('nonsense: unexpected argument', '--name=value')),
  ],
)
def test_a_wrong_flag_or_field(images, tmp_path, override, parts):
  refused(tiny.train(images, tmp_path / 'run', override), *parts)


def test_missing_flags(images, tmp_path):
  refused(tiny.run('main', f'--workdir={tmp_path / "run"}'), '--config: missing', 'configs/image_tiny.py')
  refused(tiny.run('main', *tiny.train_arguments(images, '')), '--workdir: missing')
  refused(tiny.run('main', '--config=nowhere.py', f'--workdir={tmp_path}'), '--config', 'nowhere.py does not exist')


@pytest.mark.parametrize(
  ('body', 'parts'),
  [
    ('x = 1', ('get_config',)),
    ('def (', ('config.py', 'syntax')),
    ('import nonsense\ndef get_config(): pass', ('config.py', 'nonsense')),
    ('def get_config():\n  config = default_config()\n  config.modle.depth = 3', ('modle',)),
    ('def get_config():\n  config = default_config()\n  config.model.deptth = 3', ('deptth', 'depth')),
    ('def get_config():\n  config = default_config()\n  config.model.update(deptth=3)', ('deptth', 'depth')),
    ('def get_config():\n  config = default_config()\n  config.model.depth = "three"', ('depth', 'three', 'int')),
    ('def get_config():\n  config = default_config()', ('config.py', 'get_config', 'return')),
    ('from ml_collections import ConfigDict\nget_config = lambda: ConfigDict({"task": "pretrain"})', ('default_config',)),
  ],
  ids=[
    *('no get_config', 'syntax', 'import', 'unknown section', 'unknown field', 'unknown in update', 'type'),
    *('no return', 'not from default_config'),
  ],
)
def test_a_config_file_that_is_wrong(tmp_path, body, parts):
  path = tmp_path / 'config.py'
  path.write_text(f'from d2v_jax.config import default_config\n{body}\n')
  done = tiny.run('main', f'--config={path}', f'--workdir={tmp_path / "run"}')
  refused(done, *parts)
  assert len(tiny.message(done, 2)) < 400


def test_weights_that_cannot_be_used_claim_no_workdir(images, tmp_path):
  """The corrected command must not be refused as one of another config."""
  refused(tiny.train(images, tmp_path / 'run', '--config.init_from=nowhere'), 'config.init_from', 'nowhere does not exist')
  assert not (tmp_path / 'run').exists()


def test_a_batch_that_the_devices_cannot_share(images, tmp_path):
  done = tiny.train(images, tmp_path / 'run', devices=3)
  refused(done, 'config.batch_size: 8 is not divisible by 3 devices', 'multiple of 3')


# --- data


def test_missing_and_empty_data(tmp_path):
  refused(tiny.train(tmp_path / 'nowhere', tmp_path / 'run'), 'config.data.source', tmp_path / 'nowhere', 'does not exist')
  (tmp_path / 'empty').mkdir()
  refused(tiny.train(tmp_path / 'empty', tmp_path / 'run'), 'config.data.source', tmp_path / 'empty', 'no images', '.png')
  assert not (tmp_path / 'run').exists()  # nothing is left of a run that could not begin


def test_no_part_to_evaluate_on(tmp_path):
  images = tiny.make_images(tmp_path / 'images', test=0)
  done = tiny.train(images, tmp_path / 'run', '--config.eval_every=2')
  refused(done, 'no test part', 'config.data.holdout=0.1', 'config.eval_every=0')


def test_one_unreadable_image_is_named_left_out_and_counted(tmp_path):
  images = tiny.make_images(tmp_path / 'images')
  bad = images / 'train' / 'a' / '04.png'
  bad.write_bytes(bad.read_bytes()[:80])
  done = tiny.train(images, tmp_path / 'run')
  assert done.returncode == 0, done.stderr
  assert sum('unreadable' in line and str(bad) in line for line in done.stderr.splitlines()) == 1
  result = tiny.json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['data/unreadable'] == 1 and result['steps'] == 6
  assert result['train/skipped_updates'] == 0


def test_all_images_unreadable(tmp_path):
  images = tiny.make_images(tmp_path / 'images')
  for path in images.rglob('*.png'):
    path.write_bytes(b'not an image')
  refused(tiny.train(images, tmp_path / 'run'), 'config.data.source', 'all unreadable', str(images), 'not an image')


# --- workdir


def test_a_workdir_that_cannot_be_written(images, tmp_path):
  (tmp_path / 'file').write_text('')
  for place in (tmp_path / 'file' / 'run', '/proc/run'):
    refused(tiny.train(images, place), f'--workdir: cannot write {place}', 'give a folder')


def test_a_workdir_of_another_config(images, tmp_path):
  config = tiny.get_config()
  config.data.source = f'folder:{images}'
  config.learning_rate = 0.5
  open_workdir(tmp_path / 'run', config)
  done = tiny.train(images, tmp_path / 'run')
  refused(done, f'--workdir: {tmp_path / "run"}', 'config.learning_rate=0.5, now 0.001', 'new --workdir')


def test_all_checkpoints_damaged(images, tmp_path):
  for step in ('2', '4'):
    for item in ('params', 'meta'):
      (tmp_path / 'run' / 'checkpoints' / step / item).mkdir(parents=True)
    (tmp_path / 'run' / 'checkpoints' / step / '_CHECKPOINT_METADATA').write_text('{}')
  refused(tiny.train(images, tmp_path / 'run'), tmp_path / 'run' / 'checkpoints', 'all checkpoints', '[4, 2]', 'damaged')


# --- runs that fail


def test_a_learning_rate_that_is_far_too_high(images, tmp_path):
  overrides = ('--config.learning_rate=100.0', '--config.schedule.warmup_steps=0')
  done = tiny.train(images, tmp_path / 'run', *overrides)
  refused(done, 'the loss exploded from', 'lower config.learning_rate (now 100)', 'config.schedule.warmup_steps', code=1)
  assert not (tmp_path / 'run' / 'result.json').exists()


FILL_DISK = """
from d2v_jax import cli, main
from d2v_jax.checkpoints.manager import CheckpointManager

save = CheckpointManager.save

def save_to_a_full_disk(self, state, wait=False):
  if int(state.step) == 4:
    stats = os.statvfs(self.directory)
    with open(self.directory.parent / 'filler', 'wb') as file:
      file.write(b'x' * (stats.f_bavail * stats.f_frsize - 5 * 4096))
  save(self, state, wait=True)

CheckpointManager.save = save_to_a_full_disk
if __name__ == '__main__':
  cli.run(main.main)
"""


def test_a_full_disk(images, tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(disk)]
  if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('cannot mount a small file system')
  try:
    (tmp_path / 'script.py').write_text('import os\n' + FILL_DISK)
    done = tiny.run(tmp_path / 'script.py', *tiny.train_arguments(images, disk / 'run'))
    refused(done, disk / 'run', 'cannot', 'Make room', code=1)
    (disk / 'run' / 'filler').unlink()
    assert manager.load_weights(disk / 'run' / 'checkpoints' / '2')[0].keys() == {'encoder', 'decoder'}
    done = tiny.train(images, disk / 'run')
    assert done.returncode == 0 and 'at step 2 of 6' in done.stderr, done.stderr
  finally:
    subprocess.run(['umount', '--lazy', str(disk)], check=True)


# --- other commands


def test_evaluate_without_a_checkpoint(images, tmp_path):
  arguments = tiny.train_arguments(images, tmp_path / 'run')
  refused(tiny.run('evaluate', *arguments, '--checkpoint=nowhere.pt'), 'nowhere.pt: does not exist', '.pt file')
  (tmp_path / 'run').mkdir()
  refused(tiny.run('evaluate', *arguments), tmp_path / 'run', 'no checkpoint')
  refused(tiny.run('evaluate', *arguments[:1]), '--workdir: missing')


def test_evaluate_weights_of_another_model(images, tmp_path, weights):
  arguments = tiny.train_arguments(images, tmp_path / 'run', f'--checkpoint={weights}', '--config.model.depth=3')
  refused(tiny.run('evaluate', *arguments), weights, 'encoder/block_2/', 'missing there', 'use the model settings')


def test_extract(images, tmp_path, weights):
  output = f'--output={tmp_path / "out.npz"}'
  extract = lambda *arguments: tiny.run('extract', *arguments)
  refused(extract(f'--input={images}', output), '--checkpoint: missing')
  refused(extract(f'--checkpoint={weights}', f'--input={tmp_path / "nowhere"}', output), '--input', 'nowhere does not exist')
  refused(extract('--checkpoint=nowhere', f'--input={images}', output), 'nowhere: does not exist')
  lost = f'--output={tmp_path / "no" / "out.npz"}'
  refused(extract(f'--checkpoint={weights}', f'--input={images}', lost), '--output', tmp_path / 'no', 'does not exist')
  refused(extract(f'--checkpoint={weights}', f'--input={images}', output, '--pool=max'), '--pool', 'none|mean')
  (tmp_path / 'empty').mkdir()
  refused(extract(f'--checkpoint={weights}', f'--input={tmp_path / "empty"}', output), tmp_path / 'empty', 'no images')
  assert not (tmp_path / 'out.npz').exists()


def test_benchmark_without_steps():
  config = tiny.ROOT / 'tests' / 'train' / 'tiny.py'
  refused(tiny.run('benchmark', f'--config={config}', '--steps=0'), '--steps: found 0', 'at least 1')
  refused(tiny.run('benchmark'), '--config: missing')
