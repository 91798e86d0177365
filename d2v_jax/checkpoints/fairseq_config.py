"""The reference's config in our terms: one table of the fields with a counterpart, and what becomes of all others.

Names of the reference are those of its own config tree, `model.modalities.image.mask_prob` and so on. Of the optimisers only
the default group counts, so its fields stand under `optimizer`, `lr_scheduler` and `optimization.lr` whether the file used
groups or not.
"""

import ast
import importlib.util
import math
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

import d2v_jax
from d2v_jax.config import default_config
from d2v_jax.errors import InputError

RECIPES = pathlib.Path(d2v_jax.__file__).parents[1] / 'configs'


class Field(NamedTuple):
  """Where the value of one of our fields comes from."""

  names: tuple[str, ...]  # of the reference
  convert: Callable  # their values -> ours


_first = lambda values: values[0] if isinstance(values, (list, tuple)) else values
_numbers = lambda values: [float(v) for v in (ast.literal_eval(values) if isinstance(values, str) else values)]
_number = lambda value: float(_first(value))
_names_of = lambda *names: lambda *flags: tuple(name for name, flag in zip(names, flags) if flag)


def _fields(ours, theirs, /, **fields):
  """Fields that share a prefix in our names and one in theirs; `ours=name` or `ours=(names..., convert)`."""
  table = {}
  for name, source in fields.items():
    *names, convert = source if isinstance(source, tuple) else (source, lambda value: value)
    table[f'{ours}{name}'] = Field(tuple(theirs + other for other in names), convert)
  return table


# Our field -> the reference's field or fields and the conversion.
FIELDS = {
  **_fields(
    '',
    '',
    seed='common.seed',
    total_steps='optimization.max_update',
    learning_rate=('optimization.lr', _number),
    accumulate_steps=('optimization.update_freq', _first),
    batch_size=(
      'dataset.batch_size',
      'distributed_training.distributed_world_size',
      'optimization.update_freq',
      lambda examples, workers, frequency: examples * workers * _first(frequency),
    ),
  ),
  **_fields('data.', 'model.modalities.image.', image_size='input_size'),
  **_fields(
    'model.',
    'model.',
    patch_size='modalities.image.patch_size',
    embed_dim='embed_dim',
    prenet_depth='modalities.image.prenet_depth',
    depth='depth',
    num_heads='num_heads',
    mlp_ratio=('mlp_ratio', lambda ratio: int(ratio) if ratio == int(ratio) else ratio),
    norm_eps=('norm_eps', float),
    extra_tokens='modalities.image.num_extra_tokens',
    alibi=(
      'modalities.image.use_alibi_encoder',
      'modalities.image.alibi_distance',
      lambda used, distance: distance if used else '',
    ),
    alibi_scale=('modalities.image.alibi_scale', float),
  ),
  **_fields(
    'mask.',
    'model.modalities.image.',
    ratio=('mask_prob', float),
    adjust=('mask_prob_adjust', float),
    block_size='mask_length',
    inverse='inverse_mask',
  ),
  **_fields(
    'data2vec2.',
    'model.',
    masks_per_example='clone_batch',
    average_top_k='average_top_k_layers',
    block_output_targets='end_of_block_targets',
    target_layer_norms=(
      'batch_norm_target_layer',
      'instance_norm_target_layer',
      'layer_norm_target_layer',
      _names_of('batch', 'instance', 'layer'),
    ),
    target_norms=('layer_norm_targets', 'instance_norm_targets', _names_of('layer', 'instance')),
    loss_beta=('loss_beta', float),
    loss_scale=('loss_scale', lambda scale: 0.0 if scale is None else float(scale)),
    regression_loss=('d2v_loss', float),
    cls_loss=('cls_loss', float),
    mask_noise_std=('modalities.image.mask_noise_std', float),
    ema_decay=('ema_decay', float),
    ema_end_decay=('ema_end_decay', float),
    ema_anneal_steps='ema_anneal_end_step',
  ),
  **_fields('data2vec2.', 'dataset.', cls_loss_examples='batch_size'),
  **_fields(
    'decoder.',
    'model.modalities.image.decoder.',
    dim='decoder_dim',
    layers='decoder_layers',
    kernel='decoder_kernel',
    groups='decoder_groups',
    residual='decoder_residual',
    positions=(
      'add_positions_masked',
      'add_positions_all',
      lambda masked, everywhere: 'all' if everywhere else 'masked' if masked else '',
    ),
  ),
  **_fields(
    'optimizer.',
    'optimizer.',
    beta1=('adam_betas', lambda betas: _numbers(betas)[0]),
    beta2=('adam_betas', lambda betas: _numbers(betas)[1]),
    eps=('adam_eps', float),
    weight_decay=('weight_decay', float),
  ),
  **_fields('optimizer.', 'optimization.', clip_norm=('clip_norm', float)),
  **_fields(
    'schedule.',
    'lr_scheduler.',
    name='_name',
    warmup_steps='warmup_updates',
    min_learning_rate=('min_lr', float),
  ),
  **_fields('health.', 'model.', min_target_std=('min_target_var', float), min_pred_std=('min_pred_var', float)),
}

# Fields without a counterpart whose other values mean another network: refused.
NETWORK = {
  'model.layer_norm_first': False,
  'model.norm_affine': True,
  'model.ema_encoder_only': False,
  'model.shared_decoder': None,
  'model.modalities.image.ema_local_encoder': True,
  'model.modalities.image.in_chans': 3,
  'model.modalities.image.fixed_positions': True,
  'model.modalities.image.alibi_dims': 2,
  'model.modalities.image.learned_alibi': False,
  'model.modalities.image.learned_alibi_scale': False,
  'model.modalities.image.learned_alibi_scale_per_head': False,
  'model.modalities.image.learned_alibi_scale_per_layer': False,
  'model.modalities.image.transformer_decoder': False,
  'model.modalities.image.enc_dec_transformer': False,
  'model.modalities.image.decoder.final_layer_norm': False,
}
# Fields without a counterpart whose other values mean that we would train differently: reported.
TRAINING = {
  **dict.fromkeys(
    (
      'model.start_drop_path_rate',
      'model.end_drop_path_rate',
      'model.encoder_dropout',
      'model.post_mlp_drop',
      'model.attention_dropout',
      'model.activation_dropout',
      'model.dropout_input',
      'model.layerdrop',
      'model.recon_loss',
      'model.modalities.image.prenet_layerdrop',
      'model.modalities.image.prenet_dropout',
      'model.modalities.image.start_drop_path_rate',
      'model.modalities.image.end_drop_path_rate',
      'model.modalities.image.keep_masked_pct',
      'model.modalities.image.mask_dropout',
      'model.modalities.image.mask_channel_prob',
      'model.modalities.image.decoder.input_dropout',
    ),
    0,
  ),
  **dict.fromkeys(
    (
      'model.mae_init',
      'model.skip_ema',
      'model.decoder_group',
      'model.modalities.image.init_extra_token_zero',
      'model.modalities.image.add_masks',
      'model.modalities.image.remove_masks',
      'task.beit_transforms',
      'task.target_transform',
      'task.no_transform',
    ),
    False,
  ),
  'model.modalities.image.mask_prob_min': None,
  'model.modalities.image.local_grad_mult': 1,
  'task.subsample': 1,
}
# Fields of the model that say nothing more, with the reason.
IRRELEVANT = {
  'model.modalities.image.embed_dim': 'the width of the tensors is checked',
  'model.modalities.image.num_alibi_heads': 'equals model.num_heads',
  'model.modalities.image.model_depth': 'equals model.depth',
  'model.modalities.image.type': 'shows in the names of the tensors',
  'model.supported_modality': 'shows in the names of the tensors',
  'model.modalities.image.alibi_max_pos': 'only of learned ALiBi tables',
  'model.modalities.image.encoder_zero_mask': 'masked tokens are removed, not replaced',
  'model.modalities.image.mask_channel_length': 'channels are not masked',
  'model.modalities.image.decoder.projection_layers': 'the 2-D decoder does not read it',
  'model.modalities.image.decoder.projection_ratio': 'the 2-D decoder does not read it',
  'model.max_update': 'equals optimization.max_update',
  'model.seed': 'equals common.seed',
  'model.ema_same_dtype': 'the teacher is always float32',
  'model.log_norms': 'logging',
}
_KNOWN = {*NETWORK, *TRAINING, *IRRELEVANT, *(name for field in FIELDS.values() for name in field.names)}
_ABSENT = object()
# What the reference takes for fields that an optimizer group leaves out.
_GROUP_DEFAULTS = {
  'optimizer.adam_betas': (0.9, 0.999),
  'optimizer.adam_eps': 1e-8,
  'optimizer.weight_decay': 0.0,
  'lr_scheduler.warmup_updates': 0,
  'lr_scheduler.min_lr': 0.0,
}
_NEEDED = ('model.num_heads', 'model.norm_eps')  # neither shows in the tensors


def normalise(content: dict) -> dict[str, object]:
  """Returns the config of a checkpoint flat, 'model.depth' -> value, from its nested `cfg` or the older, flat `args`.

  Raises:
    InputError: the file has neither, or describes another model than data2vec 2.0.
  """
  cfg, args = content.get('cfg'), content.get('args')
  if isinstance(cfg, dict) and isinstance(cfg.get('model'), dict):
    flat = flatten(cfg)
  elif isinstance(args, dict):
    flat = {'model._name': args.get('arch')}
    for name in _KNOWN:
      # In this form all options stand side by side under their own names; only `modalities` is a tree.
      path = name.removeprefix('model.') if name.startswith('model.') else name.rpartition('.')[2]
      value = args
      for part in path.split('.'):
        value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
      if value is not _ABSENT:
        flat[name] = value
  else:
    raise InputError('has no config (neither "cfg" nor "args"), so the number of heads is unknown')
  group = 'optimizer.groups.default.'
  if any(name.startswith(group) for name in flat):
    flat |= _GROUP_DEFAULTS
  for name in [name for name in flat if name.startswith(group)]:
    flat[name.removeprefix(group).replace('lr_float', 'optimization.lr')] = flat[name]
  for name, value in flat.items():
    if isinstance(value, str) and (reference := re.fullmatch(r'\$\{([\w.]+)\}', value)):
      flat[name] = flat.get(reference[1], value)
  if (name := flat.get('model._name')) != 'data2vec_multi':
    raise InputError(f'the config is of the model {name!r}; only data2vec 2.0 pretraining ("data2vec_multi") can be read')
  return flat


def config_from(flat: dict[str, object]) -> tuple[ConfigDict, list[str]]:
  """Returns (our config, notes) for a config from `normalise`; a note says what differs from what we can express.

  Raises:
    InputError: a value means a network that ours cannot be.
  """
  config, notes, absent = default_config(), [], []
  for name in _NEEDED:
    if flat.get(name) is None:
      raise InputError(f'its config has no {name}')
  for name, only in NETWORK.items():
    if name in flat and not _equal(flat[name], only):
      raise InputError(f'{name} is {flat[name]!r}; only {only!r} can be read')
  for ours, field in FIELDS.items():
    values = [flat.get(name) for name in field.names]
    if not all(name in flat for name in field.names):
      absent.append(ours)
      continue
    try:
      config.update_from_flattened_dict({ours: field.convert(*values)})
    except (TypeError, ValueError, IndexError, SyntaxError) as error:
      if ours.startswith('model.'):
        raise InputError(f'{" and ".join(field.names)}: {values} cannot be understood ({error})') from error
      absent.append(ours)
  for name, ours in TRAINING.items():
    if name in flat and not _equal(flat[name], ours):
      notes.append(f'{name} is {flat[name]!r}, ours is always {ours!r}: training would differ')
  for name, value in flat.items():
    if re.fullmatch(r'model\.(modalities\.image\.(decoder\.)?)?[a-z]\w*', name) and name not in _KNOWN:
      notes.append(f'{name} = {value!r}: no field of the released recipes, ignored')
  if absent:
    notes.append(f'not (usable) in its config, so ours stay: {", ".join(f"{name}={_get(config, name)}" for name in absent)}')
  return config, notes


def differences(config: ConfigDict) -> tuple[str, dict[str, tuple]] | None:
  """Finds the released recipe (`configs/image_*.py`) that is nearest to a config.

  Returns:
    (its name, {field: (value of `config`, value of the recipe)} for the fields with a counterpart in the reference), or None
    where there is no `configs/` folder beside the package.
  """
  recipes = {}
  for name in ('image_base', 'image_large', 'image_huge', 'image_huge14'):
    path = RECIPES / f'{name}.py'
    if path.is_file():
      spec = importlib.util.spec_from_file_location(name, path)
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
      recipes[name] = module.get_config()
  found = {
    name: {
      field: (_get(config, field), _get(recipe, field))
      for field in FIELDS
      if not _equal(_get(config, field), _get(recipe, field))
    }
    for name, recipe in recipes.items()
  }
  return min(found.items(), key=lambda item: len(item[1])) if found else None


def flatten(tree: dict, prefix: str = '') -> dict[str, object]:
  """Nested dicts as one: {'model': {'depth': 3}} -> {'model.depth': 3}."""
  flat = {}
  for name, value in tree.items():
    flat |= flatten(value, f'{prefix}{name}.') if isinstance(value, dict) and value else {f'{prefix}{name}': value}
  return flat


def _get(config, name):
  for part in name.split('.'):
    config = config[part]
  return config


def _equal(a, b):
  if isinstance(a, (int, float)) and isinstance(b, (int, float)):
    return math.isclose(a, b, rel_tol=1e-9)
  return (tuple(a) if isinstance(a, list) else a) == (tuple(b) if isinstance(b, list) else b)
