"""The folder of a run belongs to one config."""

import json

import pytest

from d2v_jax.errors import InputError
from d2v_jax.train.workdir import open_workdir
from tests.train.tiny import get_config

FREE = {
  'log_every': 7,
  'eval_every': 3,
  'checkpoint_every': 9,
  'checkpoint_keep_every': 2,
  'pictures': True,
  'remat': True,
  'mesh.fsdp': 2,
  'eval.knn_k': 5,
  'eval.features': 'cls',
  'health.max_skipped': 3,
  'data.workers': 3,
  'data.prefetch': 4,
  'data.max_unreadable': 5,
  'data.tfds_dir': '/elsewhere',
}
FIXED = {
  'seed': 2,
  'total_steps': 7,
  'batch_size': 16,
  'accumulate_steps': 2,
  'learning_rate': 2e-3,
  'dtype': 'bfloat16',
  'init_from': 'weights.pt',
  'data.source': 'folder:other',
  'data.holdout': 0.1,
  'data.mean': (0.5, 0.5, 0.5),
  'model.depth': 3,
  'mask.adjust': 0.2,
  'data2vec2.ema_decay': 0.95,
  'decoder.layers': 2,
  'optimizer.decay_all': True,
  'schedule.warmup_steps': 3,
}


def changed(name, value):
  config = get_config()
  config.update_from_flattened_dict({name: value})
  return config


def test_config_is_written_as_json(tmp_path):
  folder = open_workdir(tmp_path / 'a' / 'b', get_config())
  found = json.loads((folder / 'config.json').read_text())
  assert found['model']['embed_dim'] == 16 and found['data']['crop_area'] == [0.2, 1.0]


@pytest.mark.parametrize('name', FREE)
def test_fields_that_change_no_number_may_change(tmp_path, name):
  open_workdir(tmp_path, get_config())
  open_workdir(tmp_path, changed(name, FREE[name]))
  open_workdir(tmp_path, get_config())


@pytest.mark.parametrize('name', FIXED)
def test_another_config_is_refused_by_field_and_both_values(tmp_path, name):
  open_workdir(tmp_path, get_config())
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(InputError) as caught:
    open_workdir(tmp_path, changed(name, FIXED[name]))
  text = str(caught.value)
  assert text.startswith(f'--workdir: {tmp_path} holds a run with config.{name}=') and '\n' not in text
  value = list(FIXED[name]) if isinstance(FIXED[name], tuple) else FIXED[name]
  assert f'now {value};' in text and 'new --workdir' in text
  assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('content', ['', '{"seed": 1', '[]', 'null'])
def test_a_damaged_config_is_refused_by_name(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(InputError, match=r'config\.json: is not .*--workdir'):
    open_workdir(tmp_path, get_config())


@pytest.mark.parametrize('place', ['file/below', '/proc/run'])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match=r'^--workdir: cannot write .*(file/below|/proc/run) \(.+\); give a folder'):
    open_workdir(tmp_path / place, get_config())
