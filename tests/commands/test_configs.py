"""Configs: every file is valid, the released recipes hold field by field, and what cannot work is refused by name."""

import importlib.util
import types

import numpy as np
import pytest

from d2v_jax import config as configs
from d2v_jax.config import default_config, field_names, to_dict, validate
from d2v_jax.data.order import speech_buckets
from d2v_jax.errors import InputError
from d2v_jax.modalities import MODALITIES, image
from d2v_jax.parallel import mesh
from tests.train.tiny import ROOT, get_config, speech_config, text_config

FILES = sorted(str(path.relative_to(ROOT / 'configs').with_suffix('')) for path in (ROOT / 'configs').rglob('*.py'))
GLUE = ('cola', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'stsb')
RECIPES = {
  'images': ('image_base', 'image_large', 'image_huge', 'image_huge14'),
  'speech': ('audio_base', 'audio_large'),
  'ctc': tuple(
    f'finetune/ctc_{hours}:{size}' for size in ('base', 'large') for hours in ('10m', '1h', '10h', '100h', '960h')
  ),
  'text': ('text_base', 'text_large', 'text_large_1m'),
  'glue': tuple(f'finetune/glue_{task}' for task in GLUE),
}

# Our field -> its value in the released recipes of a kind, or one value where they agree.
IMAGES = {
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
  'model.alibi_learned': False,
  'model.alibi_per_head': False,
  'model.alibi_per_layer': False,
  'model.dropout.entry': 0.0,
  'model.dropout.attention': 0.0,
  'model.dropout.attention_output': 0.0,
  'model.dropout.activation': 0.0,
  'model.dropout.mlp_output': 0.0,
  'model.layer_drop': 0.0,
  'model.prenet_layer_drop': 0.0,
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
  'data2vec2.teacher_scope': 'all',
  'decoder.dim': (768, 1024, 1024, 1024),
  'decoder.layers': (6, 3, 3, 3),
  'decoder.kernel': (3, 5, 5, 5),
  'decoder.groups': 16,
  'decoder.residual': True,
  'decoder.positions': '',
  'decoder.projection_layers': 1,
  'decoder.projection_ratio': 2.0,
  'decoder.projection_init': 'fan_in',
  'decoder.input_dropout': 0.0,
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
# The weight of the CLS loss too: speech has none.
ONLY_IMAGES = {f'data.{name}' for name in ('image_size', 'crop_area', 'crop_aspect', 'flip', 'mean', 'std')}
ONLY_IMAGES |= {'model.patch_size', 'model.positions_scale', 'data2vec2.cls_loss_examples'}
CONV_LAYERS = ((512, 10, 5), (512, 3, 2), (512, 3, 2), (512, 3, 2), (512, 3, 2), (512, 2, 2), (512, 2, 2))
SPEECH = {
  **{name: value for name, value in IMAGES.items() if name not in ONLY_IMAGES},
  'modality': 'audio',
  'total_steps': (400_000, 600_000),
  'batch_size': (24, 48),  # of 20 s: as much speech as the workers' budgets hold, but for what does not fill a row
  'learning_rate': (7.5e-4, 4e-4),
  'data.bucket_seconds': (2.0, 4.0, 7.5, 10.0, 12.0, 15.0, 20.0),  # from the shortest clip used to the longest crop
  'model.conv_layers': CONV_LAYERS,
  'model.conv_init': 'kaiming',
  'model.conv_positions.layers': 5,
  'model.conv_positions.kernel': 95 // 5,
  'model.conv_positions.groups': 16,
  'model.conv_positions.pre_norm': False,
  'model.embed_dim': (768, 1024),
  'model.prenet_depth': (0, 8),
  'model.depth': (12, 16),
  'model.num_heads': (12, 16),
  'model.norm_eps': 1e-5,
  'model.extra_tokens': 0,
  'model.alibi': 'manhattan',
  'model.alibi_learned': True,
  'model.alibi_per_head': True,
  'model.dropout.entry': 0.1,
  'model.dropout.attention': 0.1,
  'model.dropout.attention_output': 0.1,
  'model.dropout.mlp_output': 0.1,
  'model.layer_drop': (0.05, 0.0),
  'model.prenet_layer_drop': (0.05, 0.0),
  'mask.ratio': (0.5, 0.55),
  'mask.adjust': (0.05, 0.1),
  'mask.block_size': 5,
  'mask.inverse': False,
  'data2vec2.masks_per_example': (8, 12),
  'data2vec2.average_top_k': (8, 16),
  'data2vec2.target_norms': (),
  'data2vec2.cls_loss': 0.0,
  'data2vec2.ema_decay': (0.999, 0.9997),
  'data2vec2.ema_end_decay': (0.99999, 1.0),
  'data2vec2.ema_anneal_steps': (75_000, 300_000),
  'data2vec2.teacher_scope': 'context',
  'decoder.dim': (384, 768),
  'decoder.layers': 4,
  'decoder.kernel': 7,
  'decoder.input_dropout': 0.1,
  'optimizer.beta2': 0.98,
  'optimizer.eps': 1e-6,
  'optimizer.weight_decay': 0.01,
  'optimizer.clip_norm': (0.0, 1.0),
  'schedule.warmup_steps': (8_000, 10_000),
  'health.min_target_std': 0.1,
  'health.min_pred_std': 0.01,
}
TEXT = {
  **{name: value for name, value in IMAGES.items() if name not in ONLY_IMAGES},
  'modality': 'text',
  'total_steps': (1_000_000, 600_000, 1_000_000),
  'batch_size': (16 * 4, 32 * 2, 32 * 2),
  'learning_rate': (2e-4, 1e-4, 1e-4),
  'checkpoint_keep_every': 50_000,
  'data.block_tokens': 512,
  'model.max_positions': 512,
  'model.positions': 'learned',
  'model.vocab_size': 50_265,  # of the usual dictionary, of which the files say nothing
  'model.embed_dim': (768, 1024, 1024),
  'model.prenet_depth': 0,
  'model.depth': (12, 24, 24),
  'model.num_heads': (12, 16, 16),
  'model.norm_eps': 1e-5,
  'model.extra_tokens': 0,
  'model.dropout.embedding': 0.1,
  'model.dropout.attention': 0.1,
  'model.dropout.attention_output': 0.1,
  'model.dropout.mlp_output': 0.1,
  'mask.ratio': (0.48, 0.5, 0.5),
  'mask.adjust': 0.0,
  'mask.block_size': 1,
  'mask.inverse': False,
  'data2vec2.masks_per_example': 8,
  'data2vec2.average_top_k': (12, 24, 24),
  'data2vec2.target_layer_norms': (('instance',), ('layer',), ('layer',)),
  'data2vec2.target_norms': ((), ('instance',), ('instance',)),
  'data2vec2.loss_beta': (0.0, 0.0, 4.0),
  'data2vec2.loss_scale': 1.0,
  'data2vec2.cls_loss': 0.0,
  'data2vec2.ema_decay': 0.9999,
  'data2vec2.ema_end_decay': 0.99999,
  'data2vec2.ema_anneal_steps': 100_000,
  'data2vec2.teacher_scope': 'blocks',
  'decoder.dim': 768,
  'decoder.layers': 5,
  'decoder.kernel': 9,
  'decoder.groups': 1,
  'decoder.residual': False,
  'decoder.projection_layers': 2,
  'decoder.projection_init': 'normal',
  'decoder.input_dropout': 0.1,
  'optimizer.beta2': 0.98,
  'optimizer.eps': 1e-6,
  'optimizer.weight_decay': 0.01,
  'optimizer.clip_norm': 1.0,
  'schedule.warmup_steps': 4_000,
  'health.min_target_std': 0.1,
  'health.min_pred_std': 0.01,
}
# In the order of GLUE.
PAIR = ('sentence1', 'sentence2')
SENTENCES = {
  'task': 'sentence',
  'method': '',
  'modality': 'text',
  'seed': 1,
  'total_steps': (5336, 123_873, 2296, 33_112, 113_272, 2036, 20_935, 3598),
  'total_epochs': 0.0,
  'batch_size': (16, 32, 16, 32, 32, 16, 32, 16),
  'accumulate_steps': 1,
  'learning_rate': (2e-5,) * 7 + (4e-5,),
  # The columns of GLUE's own files.
  'data.text_columns': (
    *(('3',), PAIR, ('#1 String', '#2 String'), ('question', 'sentence'), ('question1', 'question2')),
    *(PAIR, ('sentence',), PAIR),
  ),
  'data.label_column': ('1', 'gold_label', 'Quality', 'label', 'is_duplicate', 'label', 'label', 'score'),
  'data.header': (False,) + (True,) * 7,
  'data.train_file': 'train.tsv',
  'data.test_files': (('dev.tsv',), ('dev_matched.tsv', 'dev_mismatched.tsv'), *(('dev.tsv',),) * 6),
  'data.predict_file': '',
  'data.holdout': 0.0,
  'sentence.kind': ('classification',) * 7 + ('regression',),
  'sentence.metric': (
    *('matthews', 'accuracy', 'accuracy_f1', 'accuracy', 'accuracy_f1', 'accuracy', 'accuracy', 'pearson_spearman'),
  ),
  # Those of the pretraining.
  'model.dropout.embedding': 0.1,
  'model.dropout.entry': 0.0,
  'model.dropout.attention': 0.1,
  'model.dropout.attention_output': 0.1,
  'model.dropout.activation': 0.0,
  'model.dropout.mlp_output': 0.1,
  'model.layer_drop': 0.0,
  'model.prenet_layer_drop': 0.0,
  'optimizer.beta1': 0.9,
  'optimizer.beta2': 0.98,
  'optimizer.eps': 1e-6,
  'optimizer.weight_decay': 0.1,
  'optimizer.clip_norm': 0.0,
  'schedule.name': 'linear',
  'schedule.warmup_steps': (320, 7432, 137, 1986, 28_318, 122, 1256, 214),
}
# The size of the network is that of the weights it starts from.
ARCHITECTURE = {
  *('embed_dim', 'prenet_depth', 'depth', 'num_heads', 'mlp_ratio', 'norm_eps', 'extra_tokens', 'init_std', 'conv_layers'),
  'conv_init',
  *('alibi', 'alibi_scale', 'alibi_learned', 'alibi_per_head', 'alibi_per_layer'),
}
# The hours for base models, then for large ones.
CTC = {
  'task': 'ctc',
  'method': '',
  'modality': 'audio',
  'seed': 1,
  'total_steps': (13_000, 13_000, 20_000, 80_000, 320_000) * 2,
  'total_epochs': 0.0,
  'batch_size': (40,) * 9 + (48,),  # of 40 s
  'accumulate_steps': 1,
  'learning_rate': (5e-5, 5e-5, 5e-5, 3e-5, 1e-4, 1e-4, 3e-4, 1e-4, 3e-5, 3e-5),
  'model.dropout.entry': 0.0,
  'model.dropout.attention': 0.0,
  'model.dropout.attention_output': 0.0,
  'model.dropout.activation': 0.1,
  'model.dropout.mlp_output': 0.0,
  'model.layer_drop': (0.1, 0.1, 0.05, 0.1, 0.1) + (0.1,) * 5,
  'model.prenet_layer_drop': (0.1, 0.1, 0.05, 0.1, 0.1) + (0.1,) * 5,
  'ctc.freeze_steps': (10_000, 10_000, 10_000, 0, 0) + (10_000,) * 5,
  'ctc.train_front_end': False,
  'ctc.time_mask': (0.65, 0.65, 0.65, 0.65, 0.5, 0.65, 0.75, 0.75, 0.5, 0.5),
  'ctc.time_mask_length': 10,
  'ctc.mask_noise_std': 0.01,
  'ctc.channel_mask': (0.25, 0.25, 0.5, 0.5, 0.1, 0.25, 0.25, 0.25, 0.5, 0.25),
  'ctc.channel_mask_length': 64,
  'ctc.head_dropout': 0.0,
  'eval.language_model_weight': 0.87,  # 2 on base-10 logarithms
  'eval.word_score': -1.0,
  'optimizer.beta1': 0.9,
  'optimizer.beta2': 0.98,
  'optimizer.eps': 1e-8,
  'optimizer.weight_decay': 0.0,
  'optimizer.clip_norm': 0.0,
  'schedule.name': 'tri_stage',
  'schedule.phases': (0.1, 0.4, 0.5),
  'schedule.initial_scale': 0.01,
  'schedule.final_scale': 0.05,
}
RELEASED = {'images': IMAGES, 'speech': SPEECH, 'ctc': CTC, 'text': TEXT, 'glue': SENTENCES}
# Fields the recipes have nothing to say about.
COMMON = {
  *('dtype', 'remat', 'checkpoint_every', 'pictures', 'init_from', 'mesh.data', 'mesh.fsdp'),
  *('data.source', 'data.tfds_dir', 'data.workers', 'data.prefetch', 'data.max_unreadable'),
  *('optimizer.eps_uncorrected', 'optimizer.decay_all', 'health.max_skipped', 'health.grace_steps', 'eval.max_test'),
}
FEATURES = {f'eval.{name}' for name in ('features', 'weights', 'batch_size', 'knn_k', 'max_train', 'controls')}
TRI_STAGE = {'schedule.phases', 'schedule.initial_scale', 'schedule.final_scale'}
LENGTHS = {'data.rows_multiple', 'data.split_seconds', 'model.conv_positions.see_padding'}
OURS = {
  'images': COMMON | FEATURES | TRI_STAGE | {'model.positions_dtype'},
  'speech': COMMON | FEATURES | TRI_STAGE | LENGTHS | {'data2vec2.cls_loss_examples'},
  'ctc': COMMON
  | LENGTHS
  | {f'model.{name}' for name in ARCHITECTURE}
  | {f'model.conv_positions.{name}' for name in ('layers', 'kernel', 'groups', 'pre_norm')}
  | {'log_every', 'eval_every', 'checkpoint_keep_every', 'data.holdout', 'data.bucket_seconds'}
  | {'schedule.warmup_steps', 'schedule.min_learning_rate', 'health.min_target_std', 'health.min_pred_std'}
  | {'eval.beam_width', 'eval.language_model', 'eval.batch_size'},
  'text': COMMON
  | TRI_STAGE
  | {'data.tokenizer', 'data.lines', 'data.cache', 'data2vec2.cls_loss_examples', 'eval.batch_size', 'eval.controls'},
  'glue': COMMON
  | TRI_STAGE
  | {f'model.{name}' for name in ARCHITECTURE - {'conv_layers', 'conv_init'} | {'vocab_size', 'max_positions', 'positions'}}
  | {'log_every', 'eval_every', 'checkpoint_keep_every', 'data.tokenizer', 'data.bucket_tokens', 'eval.batch_size'}
  | {'sentence.labels', 'schedule.min_learning_rate', 'health.min_target_std', 'health.min_pred_std'},
}
# tokens, block centres, visible, masked; student tokens; views per update; epochs of ImageNet-1k; CLS weight as a mean
DERIVED = {
  'image_base': (196, 5, 39, 157, 40, 4096, 74.99, 2.56),
  'image_large': (196, 7, 49, 147, 50, 2048, 37.50, 1.28),
  'image_huge': (196, 7, 49, 147, 50, 2048, 37.50, 1.28),
  'image_huge14': (256, 9, 64, 192, 65, 4096, 99.91, 1.28),
}


def load(name):
  """The config of a file, NAME or NAME:ARGUMENT."""
  name, *arguments = name.split(':')
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)


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
  MODALITIES[config.modality](config)
  assert config.is_locked
  assert to_dict(config) == to_dict(load(name)), 'two calls must not share state'


def test_the_released_recipes_are_there():
  names = {name.partition(':')[0] for names in RECIPES.values() for name in names}
  assert names <= set(FILES)
  own = {'ctc_tiny', 'quickstart_speech', 'sentence'}
  assert {name.removeprefix('finetune/') for name in set(FILES) - names if name.startswith('finetune/')} == own


@pytest.mark.parametrize(('kind', 'name'), [(kind, name) for kind, names in RECIPES.items() for name in names])
def test_recipe_equals_the_released_one_field_by_field(kind, name):
  config, number, count = load(name), RECIPES[kind].index(name), len(RECIPES[kind])
  differences = {}
  for name, expected in RELEASED[kind].items():
    expected = expected[number] if isinstance(expected, tuple) and len(expected) == count else expected
    found = value_of(config, name)
    if found != expected or type(found) is not type(expected):
      differences[name] = (found, expected)
  assert not differences


@pytest.mark.parametrize('kind', RECIPES)
def test_every_field_is_compared_or_is_our_own(kind):
  names = {name.removeprefix('config.') for name in field_names(load(RECIPES[kind][0]))}
  assert names == RELEASED[kind].keys() | OURS[kind]
  assert not RELEASED[kind].keys() & OURS[kind]


@pytest.mark.parametrize('name', RECIPES['images'])
def test_derived_quantities_of_the_recipes(name):
  config = load(name)
  modality = image.build(config)
  masks = modality.masks(modality.grid(modality.example))
  options = config.data2vec2
  views = config.batch_size * options.masks_per_example
  found = (
    *(masks.num_tokens, masks.num_centres, masks.num_visible, masks.num_tokens - masks.num_visible),
    *(masks.num_visible + config.model.extra_tokens, views, round(config.total_steps * config.batch_size / 1_281_167, 2)),
    round(options.cls_loss * options.cls_loss_examples * options.masks_per_example, 6),
  )
  assert found == DERIVED[name]


@pytest.mark.parametrize(
  ('name', 'counts', 'rows'),
  [
    ('audio_base', (109, 499, 500), [240, 120, 64, 48, 40, 32, 24]),
    ('audio_large', (129, 549, 450), [480, 240, 128, 96, 80, 64, 48]),
  ],
)
def test_derived_quantities_of_the_speech_recipes(name, counts, rows):
  config = load(name)
  modality = MODALITIES['audio'](config)
  assert modality.example == (320_000,) and modality.grid(modality.example) == (999,)
  masks = modality.masks((999,))
  assert (masks.num_centres, masks.num_tokens - masks.num_visible, masks.num_visible) == counts
  seconds = config.data.bucket_seconds
  # A thousand clips of each length, and some that are too short.
  lengths = np.repeat([16_000, *(round(16_000 * length) for length in seconds)], 1000)
  buckets = speech_buckets(config, types.SimpleNamespace(lengths=lengths))
  assert [bucket.rows for bucket in buckets] == rows
  budget = config.batch_size * seconds[-1]
  assert all(0.85 * budget <= count * length <= budget for count, length in zip(rows, seconds))


@pytest.mark.parametrize(('name', 'visible'), [('text_base', 266), ('text_large', 256), ('text_large_1m', 256)])
def test_derived_quantities_of_the_text_recipes(name, visible):
  config = load(name)
  modality = MODALITIES['text'](config)
  masks = modality.masks(modality.grid(modality.example))
  assert (masks.num_tokens, masks.num_visible) == (512, visible)
  assert config.batch_size * config.data.block_tokens == 32_768
  assert config.batch_size * config.data2vec2.masks_per_example == 512


@pytest.mark.parametrize('name', RECIPES['glue'])
def test_weight_decay_of_the_glue_recipes_is_of_everything(name):
  assert load(name).optimizer.decay_all


def test_a_config_holds_what_its_task_and_modality_read():
  image_fields, speech_fields, ctc_fields, text_fields, sentence_fields = (
    set(field_names(default_config(*kind)))
    for kind in (('image',), ('audio',), ('audio', 'ctc'), ('text',), ('text', 'sentence'))
  )
  assert 'config.data.crop_area' in image_fields - speech_fields - ctc_fields
  assert 'config.data.bucket_seconds' in (speech_fields & ctc_fields) - image_fields
  assert 'config.mask.ratio' in (image_fields & speech_fields) - ctc_fields
  assert 'config.ctc.freeze_steps' in ctc_fields - speech_fields - image_fields
  assert 'config.data.block_tokens' in text_fields - sentence_fields - image_fields - speech_fields
  assert 'config.model.max_positions' in (text_fields & sentence_fields) - image_fields - speech_fields - ctc_fields
  assert 'config.sentence.kind' in sentence_fields - text_fields - ctc_fields
  known = configs.known_fields()
  assert known.keys() == image_fields | speech_fields | ctc_fields | text_fields | sentence_fields
  assert known['config.seed'] == known['config.mask.ratio'] == 'pretrain on image'
  assert known['config.data.bucket_seconds'] == 'pretrain on audio'
  assert known['config.ctc.freeze_steps'] == 'ctc on audio'
  assert known['config.model.vocab_size'] == 'pretrain on text' and known['config.sentence.kind'] == 'sentence on text'
  with pytest.raises(InputError, match=r'config\.task: ctc on image does not exist; there are .*ctc on audio'):
    default_config('image', 'ctc')


def test_the_tiny_configs_of_the_tests_are_valid():
  for config in (get_config(), speech_config(), speech_config('ctc'), text_config(), text_config('sentence')):
    validate(config)
    MODALITIES[config.modality](config)


@pytest.mark.parametrize(
  ('field', 'value', 'named'),
  [
    ('task', 'pretain', ("'pretain'", "'pretrain'", 'did you mean')),
    ('method', 'data2vec', ("'data2vec'", "'data2vec2'")),
    ('dtype', 'float16', ("'float16'", "'bfloat16'", "'float32'")),
    ('model.alibi', 'manhatan', ("'manhatan'", "did you mean 'manhattan'")),
    ('eval.features', 'layer', ("'layer'", "did you mean 'layers'")),
    ('schedule.name', 'lineal', ("'lineal'", "'cosine'", "did you mean 'linear'")),
    ('batch_size', 0, ('0', 'at least 1')),
    ('seed', -1, ('-1', 'at least 0')),
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
    ('data2vec2.teacher_scope', 'contxt', ("'contxt'", "did you mean 'context'")),
    ('model.layer_drop', 1.0, ('1.0', 'from 0 to below 1')),
    ('model.dropout.attention', -0.1, ('-0.1', 'from 0 to below 1')),
    ('decoder.projection_layers', 0, ('0', 'at least 1')),
    ('schedule.phases', (0.5, 0.5), ('(0.5, 0.5)', '3 numbers')),
    ('schedule.phases', (0.5, 0.1, 0.1), ('(0.5, 0.1, 0.1)', 'add up to 1')),
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


@pytest.mark.parametrize(
  ('task', 'field', 'value', 'named'),
  [
    ('ctc', 'modality', 'image', ("'image'", "allowed: 'audio'")),
    ('ctc', 'method', 'data2vec2', ("'data2vec2'",)),
    ('pretrain', 'data.bucket_seconds', (), ('()', 'ascending')),
    ('pretrain', 'data.bucket_seconds', (2.0, 1.0), ('(2.0, 1.0)', 'ascending')),
    ('pretrain', 'data.bucket_seconds', (0.0, 1.0), ('(0.0, 1.0)',)),
    ('pretrain', 'data.bucket_seconds', (0.001, 1.0), ('0.001 s is 0 frames', 'at least 2')),
    ('pretrain', 'data.rows_multiple', 3, ('3 does not divide', '4')),
    ('pretrain', 'data.rows_multiple', 0, ('0', 'at least 1')),
    ('pretrain', 'model.conv_layers', (), ('()', 'kernel, stride')),
    ('pretrain', 'model.conv_layers', ((16, 10),), ('(16, 10)', 'kernel, stride')),
    ('pretrain', 'model.conv_layers', ((16, 10, 0),), ('(16, 10, 0)', 'kernel, stride')),
    ('pretrain', 'model.conv_positions.groups', 3, ('3', 'embed_dim 16')),
    ('pretrain', 'mask.ratio', 1.0, ('1.0', '0 of 19 tokens visible')),
    ('ctc', 'ctc.time_mask_length', 0, ('0', 'at least 1')),
    ('ctc', 'ctc.head_dropout', 1.0, ('1.0', 'below 1')),
    ('ctc', 'ctc.freeze_steps', -1, ('-1', 'at least 0')),
  ],
)
def test_a_value_of_speech_that_cannot_work_is_refused(task, field, value, named):
  config = speech_config(task)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(InputError) as caught:
    validate(config)
    MODALITIES['audio'](config)
  text = str(caught.value)
  assert text.startswith(f'config.{field}: ') and '\n' not in text
  for part in named:
    assert part in text


@pytest.mark.parametrize(
  ('task', 'field', 'value', 'named'),
  [
    ('sentence', 'modality', 'audio', ("'audio'", "allowed: 'text'")),
    ('sentence', 'method', 'data2vec2', ("'data2vec2'",)),
    ('pretrain', 'data.lines', 'wraped', ("'wraped'", "did you mean 'wrapped'")),
    ('pretrain', 'data.block_tokens', 33, ('33', 'from 3 to model.max_positions 32')),
    ('pretrain', 'data.block_tokens', 2, ('2', 'from 3')),
    ('pretrain', 'model.max_positions', 0, ('0', 'at least')),
    ('sentence', 'model.max_positions', 7, ('7', 'at least 8')),
    ('pretrain', 'data2vec2.teacher_scope', 'block', ("'block'", "did you mean 'blocks'")),
    ('pretrain', 'decoder.projection_init', 'fanin', ("'fanin'", "did you mean 'fan_in'")),
    ('pretrain', 'model.dropout.embedding', 1.0, ('1.0', 'from 0 to below 1')),
    ('pretrain', 'mask.ratio', 1.0, ('1.0', '0 of 24 tokens visible')),
    ('pretrain', 'mask.ratio', 0.0, ('0.0', '24 of 24 tokens visible')),
    ('sentence', 'data.bucket_tokens', (), ('()', 'ascending')),
    ('sentence', 'data.bucket_tokens', (16, 8), ('(16, 8)', 'ascending')),
    ('sentence', 'data.bucket_tokens', (16, 16), ('(16, 16)', 'ascending')),
    ('sentence', 'data.bucket_tokens', (1, 16), ('(1, 16)', 'at least 8')),
    ('sentence', 'data.text_columns', (), ('()', 'one column, or two for pairs')),
    ('sentence', 'data.text_columns', ('a', 'b', 'c'), ("('a', 'b', 'c')", 'one column, or two for pairs')),
    ('sentence', 'data.predict_file', 'test.tsv', ('config.eval_every',)),
    ('pretrain', 'model.positions', 'lerned', ("'lerned'", "did you mean 'learned'")),
    ('sentence', 'sentence.kind', 'regresion', ("'regresion'", "did you mean 'regression'")),
    ('sentence', 'sentence.metric', 'accurancy', ("'accurancy'", "did you mean 'accuracy'")),
    ('sentence', 'sentence.metric', 'pearson_spearman', ("'pearson_spearman'", 'classification', 'is for regression')),
  ],
)
def test_a_value_of_text_that_cannot_work_is_refused(task, field, value, named):
  config = text_config(task)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(InputError) as caught:
    validate(config)
    MODALITIES['text'](config)
  text = str(caught.value)
  assert text.startswith(f'config.{field}: ') and '\n' not in text
  for part in named:
    assert part in text


@pytest.mark.parametrize('metric', ['accuracy', 'f1', 'matthews', 'accuracy_f1'])
def test_metrics_of_classes_do_not_score_a_regression(metric):
  config = text_config('sentence')
  config.sentence.update(kind='regression', metric=metric)
  with pytest.raises(
    InputError, match=rf"^config\.sentence\.metric: '{metric}' does not score a regression; 'pearson_spearman'"
  ):
    validate(config)
  config.sentence.metric = 'pearson_spearman'
  validate(config)


def test_an_evaluation_of_sentences_needs_a_table():
  config = text_config('sentence')
  config.data.test_files = ()
  validate(config)  # there is none
  config.eval_every = 3
  with pytest.raises(InputError, match=r'^config\.data\.test_files: empty; name the table .* or set config\.eval_every=0'):
    validate(config)
  config.data.holdout = 0.1
  validate(config)


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
