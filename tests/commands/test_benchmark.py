"""`benchmark`: measures the real step and ends with one JSON object."""

import json

from tests.train import tiny


def test_one_step_and_the_pipeline(tmp_path):
  images = tiny.make_images(tmp_path / 'images')
  config = tiny.ROOT / 'tests' / 'train' / 'tiny.py'
  arguments = (f'--config={config}', f'--config.data.source=folder:{images}', '--steps=1', '--pipeline_seconds=0.1')
  done = tiny.run('benchmark', *arguments)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  for name in ('step_seconds', 'examples_per_second', 'model_flops_per_second', 'compile_seconds', 'peak_memory_bytes'):
    assert found[name] > 0, name
  assert found['examples_per_second'] == 8 / found['step_seconds']
  assert found['mfu'] is None and found['devices'] == 1 and found['batch_size'] == 8
  assert found['pipeline_examples_per_second'] > 0 and found['pipeline_source'] == f'folder:{images}'


def test_speech_is_also_counted_in_seconds():
  """Without data: the pipeline reads recordings made on the spot."""
  arguments = tiny.speech_arguments('pretrain', 'folder:nowhere', '')
  done = tiny.run('benchmark', arguments[0], *arguments[2:], '--steps=1', '--pipeline_seconds=0.1')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['audio_seconds_per_second'] == 4 * 1.0 / found['step_seconds']  # four clips of the longest bucket, 1 s
  assert found['examples_per_second'] == 4 / found['step_seconds'] and found['model_flops_per_step'] > 0
  assert found['pipeline_examples_per_second'] > 0 and found['pipeline_source'] == 'generated FLAC files, 1 s'
  assert 'audio_seconds_per_second' in done.stdout.rpartition('{')[0]
