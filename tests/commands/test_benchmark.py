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
