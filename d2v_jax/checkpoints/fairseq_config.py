"""The reference's config in our terms: tables of the fields with a counterpart, and what becomes of all others.

Each modality and task has a table (`TABLES`), made of parts. Names of the reference are those of its own config tree,
`model.modalities.image.mask_prob` and so on; in the parts '@' stands for the modality's section. Of the optimisers only
the default group counts, so its fields stand under `optimizer`, `lr_scheduler` and `optimization.lr` whether the file used
groups or not. A fine-tuned file holds the config of its pretraining too, all of it under `model.w2v_args`.
"""

import ast
import dataclasses
import importlib.util
import math
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

import d2v_jax
from d2v_jax.config import default_config
from d2v_jax.data.audio import SAMPLE_RATE
from d2v_jax.errors import InputError

RECIPES = pathlib.Path(d2v_jax.__file__).parents[1] / 'configs'
PRETRAINED = 'model.w2v_args.'


class Field(NamedTuple):
  """Where the value of one of our fields comes from."""

  names: tuple[str, ...]  # of the reference
  convert: Callable  # their values -> ours


@dataclasses.dataclass(frozen=True)
class Table:
  """What becomes of the reference's fields."""

  fields: dict[str, Field]  # our field -> the reference's field or fields and the conversion
  # Fields without a counterpart whose other values mean another network: refused.
  network: dict[str, object] = dataclasses.field(default_factory=dict)
  # Those whose other values mean that we would train differently: reported.
  training: dict[str, object] = dataclasses.field(default_factory=dict)
  # Those of the model that say nothing more, with the reason.
  irrelevant: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def known(self) -> set[str]:
    """Every field of the reference that has a place."""
    named = {name for field in self.fields.values() for name in field.names}
    return {*self.network, *self.training, *self.irrelevant, *named}

  def renamed(self, rename: Callable[[str], str]) -> 'Table':
    """The same with other names for the reference's fields."""
    keys = lambda part: {rename(name): value for name, value in part.items()}
    fields = {ours: Field(tuple(map(rename, field.names)), field.convert) for ours, field in self.fields.items()}
    return Table(fields, keys(self.network), keys(self.training), keys(self.irrelevant))


def _fields(ours, theirs, /, **fields):
  """Fields that share a prefix in our names and one in theirs; `ours=name` or `ours=(names..., convert)`."""
  table = {}
  for name, source in fields.items():
    *names, convert = source if isinstance(source, tuple) else (source, lambda value: value)
    table[f'{ours}{name}'] = Field(tuple(theirs + other for other in names), convert)
  return table


def _layers(text):
  """Convolutional layers from such as '[(512, 10, 5)] + [(512, 3, 2)] * 4': literals, sums, multiples; nothing is run."""

  def value(node):
    match node:
      case ast.Constant(value=int(number)):
        return number
      case ast.Tuple(elts=parts):
        return tuple(map(value, parts))
      case ast.List(elts=parts):
        return list(map(value, parts))
      case ast.BinOp(left=left, op=ast.Add(), right=right):
        return value(left) + value(right)
      case ast.BinOp(left=ast.List() as left, op=ast.Mult(), right=ast.Constant(value=int(count))) if count <= 100:
        return value(left) * count
    raise ValueError(f'{ast.unparse(node)!r} is no part of a list of layers')

  layers = value(ast.parse(text, mode='eval').body)
  if not isinstance(layers, list) or not all(
    isinstance(layer, tuple) and len(layer) == 3 and all(isinstance(number, int) for number in layer) for layer in layers
  ):
    raise ValueError('a list of (channels, kernel, stride) is needed')
  return tuple(layers)


def _buckets(shortest, longest):
  """Our lengths of batches between the shortest and the longest clip: samples -> seconds."""
  shortest, longest = shortest / SAMPLE_RATE, longest / SAMPLE_RATE
  between = default_config('audio').data.bucket_seconds
  return (shortest, *(seconds for seconds in between if shortest < seconds < longest), longest)


def _utterances(samples, workers, frequency):
  """How many clips of our longest bucket of fine-tuning that many samples on each worker make, in eights if possible."""
  longest = default_config('audio', 'ctc').data.bucket_seconds[-1] * SAMPLE_RATE
  count = int(samples * workers * _first(frequency) // longest)
  return count // 8 * 8 or max(count, 1)


_first = lambda values: values[0] if isinstance(values, (list, tuple)) else values
_numbers = lambda values: tuple(float(v) for v in (ast.literal_eval(values) if isinstance(values, str) else values))
_number = lambda value: float(_first(value))
_names_of = lambda *names: lambda *flags: tuple(name for name, flag in zip(names, flags) if flag)
_if = lambda flag, value: float(value) if flag else 0.0

_RUN = Table(
  {
    **_fields('', '', seed='common.seed', total_steps='optimization.max_update', learning_rate=('optimization.lr', _number)),
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
      'schedule.', 'lr_scheduler.', name='_name', warmup_steps='warmup_updates', min_learning_rate=('min_lr', float)
    ),
  }
)

_ENCODER = Table(
  {
    **_fields(
      'model.',
      'model.',
      embed_dim='embed_dim',
      depth='depth',
      num_heads='num_heads',
      mlp_ratio=('mlp_ratio', lambda ratio: int(ratio) if ratio == int(ratio) else ratio),
      norm_eps=('norm_eps', float),
    ),
    **_fields(
      'model.',
      '@.',
      prenet_depth='prenet_depth',
      extra_tokens='num_extra_tokens',
      alibi_scale=('alibi_scale', float),
      alibi_learned=('use_alibi_encoder', 'learned_alibi_scale', lambda used, learned: used and learned),
      alibi_per_head='learned_alibi_scale_per_head',
      alibi_per_layer='learned_alibi_scale_per_layer',
    ),
  },
  {'model.layer_norm_first': False, 'model.norm_affine': True, '@.learned_alibi': False},
  dict.fromkeys(
    (
      *('model.start_drop_path_rate', 'model.end_drop_path_rate', 'model.dropout_input'),
      *('@.start_drop_path_rate', '@.end_drop_path_rate'),
    ),
    0,
  ),
  {
    '@.num_alibi_heads': 'equals model.num_heads',
    '@.model_depth': 'equals model.depth',
    '@.type': 'shows in the names of the tensors',
    '@.alibi_max_pos': 'only of learned ALiBi tables',
    'model.supported_modality': 'shows in the names of the tensors',
  },
)
_IMAGE_ENCODER = Table(
  {
    **_fields('data.', '@.', image_size='input_size'),
    **_fields(
      'model.',
      '@.',
      patch_size='patch_size',
      alibi=('use_alibi_encoder', 'alibi_distance', lambda used, distance: distance if used else ''),
    ),
  },
  {
    '@.in_chans': 3,
    '@.fixed_positions': True,
    '@.alibi_dims': 2,
    '@.transformer_decoder': False,
    '@.enc_dec_transformer': False,
  },
  irrelevant={'@.embed_dim': 'the width of the tensors is checked'},
)
_SPEECH_ENCODER = Table(
  {
    **_fields(
      'model.',
      '@.',
      conv_layers=('feature_encoder_spec', _layers),
      alibi=('use_alibi_encoder', lambda used: 'manhattan' if used else ''),  # on a line all distances are the same
    ),
    **_fields(
      'model.conv_positions.',
      '@.',
      layers='conv_pos_depth',
      kernel=('conv_pos_width', 'conv_pos_depth', lambda width, depth: max(3, width // depth)),
      groups='conv_pos_groups',
      pre_norm='conv_pos_pre_ln',
    ),
  },
  {'@.extractor_mode': 'layer_norm'},
)
_SPEECH = Table({}, {'task.normalize': True, 'task.sample_rate': SAMPLE_RATE})

_PRETRAINING = Table(
  {
    **_fields('model.', 'model.', layer_drop=('layerdrop', float)),
    **_fields('model.', '@.', prenet_layer_drop=('prenet_layerdrop', float)),
    **_fields('model.dropout.', '@.', entry=('prenet_dropout', float)),
    **_fields(
      'model.dropout.',
      'model.',
      attention=('attention_dropout', float),
      attention_output=('encoder_dropout', float),
      activation=('activation_dropout', float),
      mlp_output=('post_mlp_drop', float),
    ),
    **_fields(
      'mask.',
      '@.',
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
      ema_decay=('ema_decay', float),
      ema_end_decay=('ema_end_decay', float),
      ema_anneal_steps='ema_anneal_end_step',
    ),
    **_fields(
      'data2vec2.',
      '@.',
      mask_noise_std=('mask_noise_std', float),
      teacher_scope=('ema_local_encoder', lambda averaged: 'all' if averaged else 'context'),
    ),
    **_fields(
      'decoder.',
      '@.decoder.',
      dim='decoder_dim',
      layers='decoder_layers',
      kernel='decoder_kernel',
      groups='decoder_groups',
      residual='decoder_residual',
      input_dropout=('input_dropout', float),
    ),
    **_fields('health.', 'model.', min_target_std=('min_target_var', float), min_pred_std=('min_pred_var', float)),
  },
  {'model.ema_encoder_only': False, 'model.shared_decoder': None, '@.decoder.final_layer_norm': False},
  {
    **dict.fromkeys(('model.recon_loss', '@.keep_masked_pct', '@.mask_dropout', '@.mask_channel_prob'), 0),
    **dict.fromkeys(('model.mae_init', 'model.skip_ema', 'model.decoder_group', '@.add_masks', '@.remove_masks'), False),
    '@.mask_prob_min': None,
    '@.local_grad_mult': 1,
    'task.subsample': 1,
  },
  {
    '@.encoder_zero_mask': 'masked tokens are removed, not replaced',
    '@.mask_channel_length': 'channels are not masked',
    'model.max_update': 'equals optimization.max_update',
    'model.seed': 'equals common.seed',
    'model.ema_same_dtype': 'the teacher is always float32',
    'model.log_norms': 'logging',
  },
)
_IMAGE_PRETRAINING = Table(
  {
    **_fields(
      '',
      '',
      accumulate_steps=('optimization.update_freq', _first),
      batch_size=(
        'dataset.batch_size',
        'distributed_training.distributed_world_size',
        'optimization.update_freq',
        lambda examples, workers, frequency: examples * workers * _first(frequency),
      ),
    ),
    **_fields('data2vec2.', 'dataset.', cls_loss_examples='batch_size'),
    **_fields(
      'decoder.',
      '@.decoder.',
      positions=(
        'add_positions_masked',
        'add_positions_all',
        lambda masked, everywhere: 'all' if everywhere else 'masked' if masked else '',
      ),
    ),
  },
  training=dict.fromkeys(
    ('@.init_extra_token_zero', 'task.beit_transforms', 'task.target_transform', 'task.no_transform'), False
  ),
  irrelevant=dict.fromkeys(
    ('@.decoder.projection_layers', '@.decoder.projection_ratio'), 'the 2-D decoder does not read it'
  ),
)
_SPEECH_PRETRAINING = Table(
  {
    **_fields(
      '',
      '',
      batch_size=(
        'dataset.max_tokens',
        'task.max_sample_size',
        'distributed_training.distributed_world_size',
        'optimization.update_freq',
        lambda samples, longest, workers, frequency: max(1, samples // longest) * workers * _first(frequency),
      ),
    ),
    **_fields('data.', 'task.', bucket_seconds=('min_sample_size', 'max_sample_size', _buckets)),
    **_fields('decoder.', '@.decoder.', projection_layers='projection_layers', projection_ratio=('projection_ratio', float)),
  },
  dict.fromkeys(('@.decoder.add_positions_masked', '@.decoder.add_positions_all'), False),
  {'task.enable_padding': False, 'task.precompute_mask_config': {}},
  {'@.init_extra_token_zero': 'only the start of extra tokens'},
)

_CTC = Table(
  {
    **_fields(
      '',
      '',
      batch_size=(
        'dataset.max_tokens',
        'distributed_training.distributed_world_size',
        'optimization.update_freq',
        _utterances,
      ),
    ),
    **_fields(
      'schedule.',
      'lr_scheduler.',
      phases=('phase_ratio', _numbers),
      initial_scale=('init_lr_scale', float),
      final_scale=('final_lr_scale', float),
    ),
    **_fields('model.', 'model.', layer_drop=('layerdrop', float), prenet_layer_drop=('layerdrop', float)),
    **_fields(
      'model.dropout.',
      'model.',
      entry=('dropout', float),
      attention=('attention_dropout', float),
      attention_output=('dropout', float),
      activation=('activation_dropout', float),
      mlp_output=('dropout', float),
    ),
    **_fields(
      'ctc.',
      'model.',
      freeze_steps='freeze_finetune_updates',
      train_front_end=('feature_grad_mult', lambda factor: {0: False, 1: True}[factor]),
      time_mask=('apply_mask', 'mask_prob', _if),
      time_mask_length='mask_length',
      mask_noise_std=(
        'zero_mask',
        'w2v_args.model.modalities.audio.mask_noise_std',
        lambda zero, std: 0.0 if zero else float(std),
      ),
      channel_mask=('apply_mask', 'mask_channel_prob', _if),
      channel_mask_length='mask_channel_length',
      head_dropout=('final_dropout', float),
    ),
  },
  {'model.blank_weight': 0},
  {
    **dict.fromkeys(('model.dropout_input', 'model.mask_dropout', 'model.mask_other', 'model.mask_channel_other'), 0),
    **dict.fromkeys(('model.mask_selection', 'model.mask_channel_selection'), 'static'),
    **dict.fromkeys(('model.no_mask_overlap', 'model.no_mask_channel_overlap', 'model.mask_channel_before'), False),
    **dict.fromkeys(('lr_scheduler.warmup_steps', 'lr_scheduler.hold_steps', 'lr_scheduler.decay_steps'), 0),
    **dict.fromkeys(('model.update_alibi', 'criterion.zero_infinity', 'optimization.sentence_avg'), True),
    'model.layer_decay': 1,
  },
  {
    **dict.fromkeys(('model.w2v_args', 'model.w2v_path', 'model.no_pretrained_weights'), 'of the pretraining'),
    'model.supported_modality': 'shows in the names of the tensors',
    'model.load_ema': 'where the weights came from',
    'model.data': 'a place',
    'model.normalize': 'equals task.normalize',
    'model.blank_mode': 'the blank has no extra weight',
    'model.drop_path': 'acts on no field of data2vec 2.0',
    'model.require_same_masks': 'all rows mask as many frames',
    **dict.fromkeys(
      (
        *('model.conv_feature_layers', 'model.encoder_embed_dim', 'model.mask_min_space', 'model.mask_channel_min_space'),
        *('model.autoregressive', 'model.layer_type', 'model.adp_num', 'model.adp_dim', 'model.adp_act_fn'),
        *('model.adp_trf_idx', 'model.ddp_backend', 'model.offload_activations', 'model.min_params_to_wrap'),
        'model.checkpoint_activations',
      ),
      'says nothing about this network',
    ),
  },
)


def _table(modality, *parts):
  """The parts as one table, with the modality's section spelt out."""
  merge = lambda kind: {name: value for part in parts for name, value in getattr(part, kind).items()}
  merged = Table(*map(merge, ('fields', 'network', 'training', 'irrelevant')))
  return merged.renamed(lambda name: name.replace('@', f'model.modalities.{modality}'))


TABLES = {
  ('image', 'pretrain'): _table('image', _RUN, _ENCODER, _IMAGE_ENCODER, _PRETRAINING, _IMAGE_PRETRAINING),
  ('audio', 'pretrain'): _table('audio', _RUN, _ENCODER, _SPEECH_ENCODER, _SPEECH, _PRETRAINING, _SPEECH_PRETRAINING),
}
TABLES['audio', 'ctc'] = _table(
  'audio',
  *(part.renamed(lambda name: PRETRAINED + name) for part in (_ENCODER, _SPEECH_ENCODER)),
  Table({}, irrelevant={PRETRAINED + name: 'of the pretraining' for name in TABLES['audio', 'pretrain'].known}),
  *(_RUN, _SPEECH, _CTC),
)
_RECIPES = {
  ('image', 'pretrain'): ('image_base', 'image_large', 'image_huge', 'image_huge14'),
  ('audio', 'pretrain'): ('audio_base', 'audio_large'),
  ('audio', 'ctc'): tuple(f'finetune/ctc_{amount}' for amount in ('10m', '1h', '10h', '100h', '960h')),
}
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
    flat = _flat(cfg)
  elif isinstance(args, dict):
    flat = _flat(args)
  else:
    raise InputError('has no config (neither "cfg" nor "args"), so the number of heads is unknown')
  found = flat.get('model._name')
  if found == 'wav2vec_ctc' and (inner := flat.get(PRETRAINED + 'model._name')) != 'data2vec_multi':
    raise InputError(f'its {PRETRAINED}model is {inner!r}; fine-tuned models can be read of data2vec 2.0 ("data2vec_multi")')
  if found not in ('data2vec_multi', 'wav2vec_ctc'):
    raise InputError(
      f'the config is of the model {found!r}; only data2vec 2.0 pretraining ("data2vec_multi") and CTC fine-tuning '
      '("wav2vec_ctc") can be read'
    )
  return flat


def _flat(tree):
  """A config flat, in either form, with what it refers to and what optimizer groups say in the places of the fields."""
  if isinstance(tree.get('model'), dict):
    flat, inner = flatten(tree), tree['model'].get('w2v_args')
  else:
    flat, inner = {'model._name': tree.get('arch')}, tree.get('w2v_args')
    tables = [table for (_, task), table in TABLES.items() if (task == 'ctc') == (tree.get('arch') == 'wav2vec_ctc')]
    for name in sorted(set().union(*(table.known for table in tables))):
      # In this form all options stand side by side under their own names; only `modalities` is a tree.
      path = name.removeprefix('model.') if name.startswith('model.') else name.rpartition('.')[2]
      value = tree
      for part in path.split('.'):
        value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
      if value is not _ABSENT:
        flat[name] = value
  group = 'optimizer.groups.default.'
  if any(name.startswith(group) for name in flat):
    flat |= _GROUP_DEFAULTS
  for name in [name for name in flat if name.startswith(group)]:
    flat[name.removeprefix(group).replace('lr_float', 'optimization.lr')] = flat[name]
  for name, value in flat.items():
    if isinstance(value, str) and (reference := re.fullmatch(r'\$\{([\w.]+)\}', value)):
      flat[name] = flat.get(reference[1], value)
  if isinstance(inner, dict):
    flat |= {PRETRAINED + name: value for name, value in _flat(inner).items()}
  return flat


def config_from(flat: dict[str, object]) -> tuple[ConfigDict, list[str]]:
  """Returns (our config, notes) for a config from `normalise`; a note says what differs from what we can express.

  `model.supported_modality` says of which modality it is, `model._name` of which task.

  Raises:
    InputError: a value means a network that ours cannot be.
  """
  modality = flat['model.supported_modality'].lower()
  task, pretrained = ('ctc', PRETRAINED) if flat.get('model._name') == 'wav2vec_ctc' else ('pretrain', '')
  if (modality, task) not in TABLES:
    raise InputError(f'{task} on {modality} cannot be read')
  table, section = TABLES[modality, task], f'{pretrained}model.modalities.{modality}.'
  config, notes, absent = default_config(modality, task), [], []
  for name in _NEEDED:
    if flat.get(pretrained + name) is None:
      raise InputError(f'its config has no {pretrained}{name}')
  for name, only in table.network.items():
    if name in flat and not _equal(flat[name], only):
      raise InputError(f'{name} is {flat[name]!r}; only {only!r} can be read')
  for ours, field in table.fields.items():
    values = [flat.get(name) for name in field.names]
    if not all(name in flat for name in field.names):
      absent.append(ours)
      continue
    try:
      config.update_from_flattened_dict({ours: field.convert(*values)})
    except (TypeError, ValueError, LookupError, SyntaxError, RecursionError) as error:
      if ours.startswith('model.'):
        raise InputError(f'{" and ".join(field.names)}: {values} cannot be understood ({error})') from error
      absent.append(ours)
  heads = flat.get(section + 'num_alibi_heads')
  if config.model.alibi and isinstance(heads, int) and heads != config.model.num_heads:
    raise InputError(f'{section}num_alibi_heads is {heads!r}; only model.num_heads, {config.model.num_heads}, can be read')
  for name, ours in table.training.items():
    if name in flat and not _equal(flat[name], ours):
      notes.append(f'{name} is {flat[name]!r}, ours is always {ours!r}: training would differ')
  fields = re.compile(rf'(model\.|{re.escape(pretrained)}model\.|{re.escape(section)}(decoder\.)?)[a-z]\w*')
  for name, value in flat.items():
    if fields.fullmatch(name) and name not in table.known:
      notes.append(f'{name} = {value!r}: no field of the released recipes, ignored')
  if modality == 'audio':
    config.model.conv_positions.see_padding = True  # as the reference does
    config.data.rows_multiple = math.gcd(config.data.rows_multiple, config.batch_size)
    notes.append(
      'of its batches only the size is taken over, as clips of the longest bucket; which clips share a batch is ours '
      '(data.bucket_seconds, data.rows_multiple)'
    )
  if absent:
    notes.append(f'not (usable) in its config, so ours stay: {", ".join(f"{name}={_get(config, name)}" for name in absent)}')
  return config, notes


def differences(config: ConfigDict) -> tuple[str, dict[str, tuple]] | None:
  """Finds the released recipe (`configs/*.py`) of the same modality and task that is nearest to a config.

  Returns:
    (its name, {field: (value of `config`, value of the recipe)} for the fields with a counterpart in the reference), or None
    where there is none.
  """
  kind, recipes = (config.modality, config.task), {}
  for name in _RECIPES[kind]:
    path = RECIPES / f'{name}.py'
    if path.is_file():
      spec = importlib.util.spec_from_file_location(name, path)
      module = importlib.util.module_from_spec(spec)
      spec.loader.exec_module(module)
      recipes[name] = module.get_config()
  found = {
    name: {
      field: (_get(config, field), _get(recipe, field))
      for field in TABLES[kind].fields
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
