"""The config in a checkpoint of the reference as one of ours, by the tables of `fairseq_tables`."""

import importlib.util
import math
import pathlib
import re

from ml_collections import ConfigDict

import d2v_jax
from d2v_jax.checkpoints.fairseq_tables import MODELS, TABLES
from d2v_jax.config import default_config
from d2v_jax.errors import InputError

RECIPES = pathlib.Path(d2v_jax.__file__).parents[1] / 'configs'
_RECIPES = {
  ('image', 'pretrain'): ('image_base', 'image_large', 'image_huge', 'image_huge14'),
  ('audio', 'pretrain'): ('audio_base', 'audio_large'),
  ('audio', 'ctc'): tuple(f'finetune/ctc_{amount}' for amount in ('10m', '1h', '10h', '100h', '960h')),
  ('text', 'pretrain'): ('text_base', 'text_large', 'text_large_1m'),
  ('text', 'sentence'): tuple(
    f'finetune/glue_{task}' for task in ('cola', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'stsb')
  ),
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
  name = flat.get('model._name')
  if str(name) not in MODELS:
    raise InputError(
      f'the config is of the model {name!r}; only data2vec 2.0 can be read: pretraining ("data2vec_multi"), CTC '
      '("wav2vec_ctc") and tasks of sentences ("data2vec_text_classification")'
    )
  _, pretrained = _kind(name)
  if pretrained and (inner := flat.get(pretrained + 'model._name')) != 'data2vec_multi':
    raise InputError(f'its {pretrained}model is {inner!r}; fine-tuned models can be read of data2vec 2.0 ("data2vec_multi")')
  return flat


def _kind(model):
  """(Our task, what stands before the names of the fields of pretraining) for the reference's name of a model."""
  task, field = MODELS.get(str(model), ('pretrain', ''))
  return task, f'model.{field}.' if field else ''


def _group(flat, name):
  """What an optimizer group says, in the places of the fields that it stands for; empty where there is no such group."""
  prefix = f'optimizer.groups.{name}.'
  found = {
    field.removeprefix(prefix).replace('lr_float', 'optimization.lr'): value
    for field, value in flat.items()
    if field.startswith(prefix)
  }
  return _GROUP_DEFAULTS | found if found else {}


def _flat(tree):
  """A config flat, in either form, with what it refers to and what optimizer groups say in the places of the fields."""
  if isinstance(tree.get('model'), dict):
    flat, options = flatten(tree), tree['model']
    task, pretrained = _kind(options.get('_name'))
  else:
    flat, options = {'model._name': tree.get('arch')}, tree
    task, pretrained = _kind(tree.get('arch'))
    for name in sorted(set().union(*(table.known for (_, other), table in TABLES.items() if other == task))):
      # In this form all options stand side by side under their own names; only `modalities` is a tree.
      path = name.removeprefix('model.') if name.startswith('model.') else name.rpartition('.')[2]
      value = tree
      for part in path.split('.'):
        value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
      if value is not _ABSENT:
        flat[name] = value
  for name, value in flat.items():
    if isinstance(value, str) and (reference := re.fullmatch(r'\$\{([\w.]+)\}', value)):
      flat[name] = flat.get(reference[1], value)
  flat |= _group(flat, 'default')
  if flat.get('model.decoder_group') and _group(flat, 'decoder') in ({}, _group(flat, 'default')):
    flat['model.decoder_group'] = False  # a group by name only
  if pretrained and isinstance(inner := options.get(pretrained.split('.')[1]), dict):
    flat |= {pretrained + name: value for name, value in _flat(inner).items()}
  return flat


def config_from(flat: dict[str, object]) -> tuple[ConfigDict, list[str]]:
  """Returns (our config, notes) for a config from `normalise`; a note says what differs from what we can express.

  `model.supported_modality` says of which modality it is, `model._name` of which task.

  Raises:
    InputError: a value means a network that ours cannot be.
  """
  modality = flat['model.supported_modality'].lower()
  task, pretrained = _kind(flat.get('model._name'))
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
