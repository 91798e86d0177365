"""Configs: every file is valid, the released recipes hold field by field, and what cannot work is refused by name."""

import importlib.util

import pytest

from d2v_jax import config as configs
from d2v_jax.config import default_config, field_names, to_dict, validate
from d2v_jax.errors import InputError
from d2v_jax.modalities import image
from d2v_jax.parallel import mesh
from tests.train.tiny import ROOT, get_config

FILES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
RECIPES = ('image_base', 'image_large', 'image_huge', 'image_huge14')

# Our field -> its value in the four released recipes, or one value where they agree.
RELEASED = {
  'task': 'pretrain',
  'method': 'data2vec2',
  'modality': 'image',
  'seed': 1,
  'total_steps': (375_300, 375_300, 375_300, 500_000),
  'total_epochs': 0.0,
  'batch_size': (16 * 16, 16 * 8, 16 * 8, 32 * 8),  # workers x examples of each
  'accumulate_steps': 1,
  'learning_rate': (1e-3, 4e-4, 4e-4, 4e-4),
  'log_every': 200,
  'eval_every': 0,
  'checkpoint_keep_every': 25_000,
  'data.image_size': 224,
  'data.crop_area': (0.2, 1.0),
  'data.crop_aspect': (3 / 4, 4 / 3),
  'data.flip': True,
  'data.mean': (0.485, 0.456, 0.406),
  'data.std': (0.229, 0.224, 0.225),
  'data.holdout': 0.0,
  'model.patch_size': (16, 16, 16, 14),
  'model.embed_dim': (768, 1024, 1280, 1280),
  'model.prenet_depth': (2, 0, 0, 0),
  'model.depth': (10, 24, 32, 32),
  'model.num_heads': (12, 16, 16, 16),
  'model.mlp_ratio': 4,
  'model.norm_eps': 1e-6,
  'model.extra_tokens': 1,
  'model.positions_scale': 1.0,
  'model.init_std': 0.02,
  'model.alibi': '',
  'model.alibi_scale': 1.0,
  'mask.ratio': (0.8, 0.75, 0.75, 0.75),
  'mask.adjust': (0.07, 0.1, 0.1, 0.1),
  'mask.block_size': 3,
  'mask.inverse': True,
  'data2vec2.masks_per_example': 16,
  'data2vec2.average_top_k': (10, 18, 24, 24),
  'data2vec2.block_output_targets': False,
  'data2vec2.target_layer_norms': ('instance',),
  'data2vec2.target_norms': ('layer',),
  'data2vec2.loss_beta': 0.0,
  'data2vec2.loss_scale': 0.0,  # none given: 1 / sqrt(width)
  'data2vec2.regression_loss': 1.0,
  'data2vec2.cls_loss': 0.01,
  'data2vec2.cls_loss_examples': (16, 8, 8, 8),
  'data2vec2.mask_noise_std': 0.01,
  'data2vec2.ema_decay': 0.9998,
  'data2vec2.ema_end_decay': (0.99999, 0.99999, 0.99995, 1.0),
  'data2vec2.ema_anneal_steps': (100_000, 150_000, 150_000, 300_000),
  'decoder.dim': (768, 1024, 1024, 1024),
  'decoder.layers': (6, 3, 3, 3),
  'decoder.kernel': (3, 5, 5, 5),
  'decoder.groups': 16,
  'decoder.residual': True,
  'decoder.positions': '',
  'optimizer.beta1': 0.9,
  'optimizer.beta2': 0.95,
  'optimizer.eps': 1e-8,
  'optimizer.weight_decay': 0.05,
  'optimizer.clip_norm': 4.0,
  'schedule.name': 'cosine',
  'schedule.warmup_steps': 50_040,
  'schedule.min_learning_rate': 0.0,
  'health.min_target_std': 0.0,
  'health.min_pred_std': 0.0,
}
# Fields the recipes have nothing to say about.
OURS = {
  *('dtype', 'remat', 'checkpoint_every', 'pictures', 'init_from', 'mesh.data', 'mesh.fsdp'),
  *('data.source', 'data.tfds_dir', 'data.workers', 'data.prefetch', 'data.max_unreadable'),
  *('model.positions_dtype', 'optimizer.eps_uncorrected', 'optimizer.decay_all'),
  *('health.max_skipped', 'health.grace_steps'),
  *('eval.features', 'eval.weights', 'eval.batch_size', 'eval.knn_k', 'eval.max_train', 'eval.max_test', 'eval.controls'),
}
# tokens, block centres, visible, masked; student tokens; views per update; epochs of ImageNet-1k; CLS weight as a mean
DERIVED = {
  'image_base': (196, 5, 39, 157, 40, 4096, 74.99, 2.56),
  'image_large': (196, 7, 49, 147, 50, 2048, 37.50, 1.28),
  'image_huge': (196, 7, 49, 147, 50, 2048, 37.50, 1.28),
  'image_huge14': (256, 9, 64, 192, 65, 4096, 99.91, 1.28),
}


def load(name):
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def value_of(config, name):
  for part in name.split('.'):
    config = config[part]
  return config


def with_fields(**fields):
  config = get_config()
  config.update_from_flattened_dict(fields)
  return config


def refusal(**fields):
  with pytest.raises(InputError) as caught:
    validate(with_fields(**fields))
  text = str(caught.value)
  assert '\n' not in text
  return text


@pytest.mark.parametrize('name', FILES)
def test_every_config_file_is_valid(name):
  config = load(name)
  validate(config)
  image.build(config)
  assert config.is_locked
  assert to_dict(config) == to_dict(load(name)), 'two calls must not share state'


def test_the_released_recipes_are_there():
  assert set(RECIPES) <= set(FILES)


@pytest.mark.parametrize('number', range(4), ids=RECIPES)
def test_recipe_equals_the_released_one_field_by_field(number):
  config = load(RECIPES[number])
  differences = {}
  for name, expected in RELEASED.items():
    expected = expected[number] if isinstance(expected, tuple) and len(expected) == 4 else expected
    found = value_of(config, name)
    if found != expected or type(found) is not type(expected):
      differences[name] = (found, expected)
  assert not differences


def test_every_field_is_compared_or_is_our_own():
  names = {name.removeprefix('config.') for name in field_names()}
  assert names == RELEASED.keys() | OURS
  assert not RELEASED.keys() & OURS


@pytest.mark.parametrize('name', RECIPES)
def test_derived_quantities_of_the_recipes(name):
  config = load(name)
  masks = image.build(config).masks
  options = config.data2vec2
  views = config.batch_size * options.masks_per_example
  found = (
    *(masks.num_tokens, masks.num_centres, masks.num_visible, masks.num_tokens - masks.num_visible),
    *(masks.num_visible + config.model.extra_tokens, views, round(config.total_steps * config.batch_size / 1_281_167, 2)),
    round(options.cls_loss * options.cls_loss_examples * options.masks_per_example, 6),
  )
  assert found == DERIVED[name]


@pytest.mark.parametrize(
  ('field', 'value', 'named'),
  [
    ('task', 'pretain', ("'pretain'", "'pretrain'", 'did you mean')),
    ('method', 'data2vec', ("'data2vec'", "'data2vec2'")),
    ('dtype', 'float16', ("'float16'", "'bfloat16'", "'float32'")),
    ('model.alibi', 'manhatan', ("'manhatan'", "did you mean 'manhattan'")),
    ('eval.features', 'layer', ("'layer'", "did you mean 'layers'")),
    ('schedule.name', 'linear', ("'linear'", "'cosine'")),
    ('batch_size', 0, ('0', 'at least 1')),
    ('log_every', -1, ('-1', 'at least 1')),
    ('learning_rate', -0.1, ('-0.1', 'at least 0')),
    ('learning_rate', float('nan'), ('nan', 'at least 0')),
    ('optimizer.clip_norm', -4.0, ('-4.0', 'at least 0')),
    ('data2vec2.ema_decay', 1.2, ('1.2', 'from 0 to 1')),
    ('data2vec2.ema_anneal_steps', 0, ('0', 'at least 1')),
    ('data2vec2.target_layer_norms', ('instance', 'group'), ("'group'", "'batch', 'instance', 'layer'")),
    ('data2vec2.target_norms', ('batch',), ("'batch'", "'layer', 'instance'")),
    ('data.crop_area', (0.2,), ('(0.2,)', '2 numbers')),
    ('data.mean', (0.5, 0.5, 'a'), ("'a'", '3 numbers')),
    ('total_steps', 0, ('0', 'total_epochs', 'give one')),
    ('total_epochs', 1.0, ('1.0', 'total_steps 6', 'only one')),
    ('model.num_heads', 3, ('3', 'embed_dim 16')),
    ('data2vec2.average_top_k', 3, ('3', 'model.depth 2')),
    ('decoder.groups', 3, ('3', '16')),
    ('optimizer.beta2', 1.5, ('1.5',)),
    ('mask.ratio', -0.1, ('-0.1',)),
  ],
)
def test_a_value_that_cannot_work_is_refused_by_field_found_and_allowed(field, value, named):
  text = refusal(**{field: value})
  assert text.startswith(f'config.{field}: ')
  for part in named:
    assert part in text


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('mask.ratio', 1.0),  # nothing visible
    ('mask.ratio', 0.99),  # nothing visible either: the floor of 0.16 tokens
    ('mask.ratio', 0.0),  # nothing masked: no loss
    ('data.std', (0.0, 1.0, 1.0)),
    ('data.crop_area', (0.5, 0.2)),
    ('data.crop_area', (0.0, 1.0)),
    ('data.crop_aspect', (0.0, 1.0)),
    ('optimizer.beta1', 1.0),
    ('optimizer.beta2', 1.0),
    ('mesh.fsdp', 0),
    ('mesh.data', -2),
  ],
)
def test_a_value_that_would_crash_or_train_nothing_is_refused(field, value):
  config = with_fields(**{field: value})
  with pytest.raises(InputError) as caught:
    validate(config)
    image.build(config)
    mesh.build(config)
  assert str(caught.value).startswith(f'config.{field.partition(".")[0]}')


def test_fields_that_need_an_extra_token():
  assert refusal(**{'model.extra_tokens': 0}).startswith('config.data2vec2.cls_loss: needs an extra token')
  assert refusal(**{'model.extra_tokens': 0, 'data2vec2.cls_loss': 0.0, 'eval.features': 'cls'}).startswith(
    'config.eval.features: '
  )
  validate(with_fields(**{'model.extra_tokens': 0, 'data2vec2.cls_loss': 0.0}))


def test_width_must_hold_two_dimensional_positions():
  fields = {'model.embed_dim': 6, 'model.num_heads': 1, 'decoder.groups': 1}
  assert refusal(**fields).startswith('config.model.embed_dim: 6')


def test_unknown_fields_and_wrong_types_cannot_be_set():
  config = default_config()
  with pytest.raises(AttributeError):
    config.batchsize = 3
  with pytest.raises((AttributeError, KeyError)):
    config.model.update(embeddim=3)
  with pytest.raises(TypeError):
    config.batch_size = '3'


def test_differences_name_dotted_fields_with_both_values():
  one, other = get_config(), get_config()
  other.model.depth = 3
  other.data.mean = (0.5, 0.5, 0.5)
  found = configs.differences(to_dict(one), to_dict(other))
  assert found == {
    'config.model.depth': (2, 3),
    'config.data.mean': ([0.485, 0.456, 0.406], [0.5, 0.5, 0.5]),
  }
  without = to_dict(one)
  del without['mask']['adjust']
  assert configs.differences(without, to_dict(one)) == {'config.mask.adjust': (None, 0.1)}
