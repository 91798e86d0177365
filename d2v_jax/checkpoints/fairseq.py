"""Weights of the reference implementation (fairseq, `examples/data2vec`) as our parameters.

Every tensor of a checkpoint is accounted for: it becomes one or more of our arrays, or is listed with the reason why not.
One that is missing, unexpected or of the wrong shape is refused. Sizes are read from the tensors and checked against the
config that stands in the checkpoint. A modality is one function that lays out its tensors (`LAYOUTS`).
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from d2v_jax.checkpoints import fairseq_config, torch_pickle
from d2v_jax.errors import InputError
from d2v_jax.nn.positions import sincos_2d


class Tensor(NamedTuple):
  """One tensor of the reference: its shape there, and how each of our arrays is made from it.

  With nothing in `ours` it is not imported, for the reason given.
  """

  shape: tuple[int, ...]
  ours: dict[str, Callable]  # 'encoder/norm/scale' and the like
  unused: str = ''


@dataclasses.dataclass
class Account:
  """Where each tensor of a state dict went: `used` name -> our arrays, `unused` name -> the reason."""

  used: dict[str, list[str]]
  unused: dict[str, str]
  parameters: int  # numbers in our arrays


@dataclasses.dataclass
class ImportedCheckpoint:
  """A checkpoint of the reference in our terms.

  Attributes:
    params: student, {'encoder': ..., 'decoder': ...} of float32 arrays; without 'decoder' if the file has none.
    teacher: {'encoder': ...}, or None if the file has none.
    config: full config of the run that made it, as far as the file tells.
    student_account, teacher_account: where each tensor went.
    notes: what else the file holds or lacks, one line each.
  """

  params: dict
  teacher: dict | None
  config: ConfigDict
  student_account: Account
  teacher_account: Account | None
  notes: list[str]


def student_params(state: dict) -> dict:
  """Returns our student parameters from a flat state dict of the reference (name -> array).

  Works for anything shaped like the student, gradients for example; fixed positions may be absent.

  Raises:
    InputError: names the tensor that is missing, unexpected or of the wrong shape.
  """
  return map_tensors(state)[0]


def teacher_params(state: dict) -> dict:
  """Returns our teacher parameters, {'encoder': ...}, from the dict under the reference's `_ema`; raises likewise."""
  return map_tensors(state)[0]


def import_checkpoint(path) -> ImportedCheckpoint:
  """Reads a `.pt` file of the reference; see `ImportedCheckpoint`. Half-precision weights are cast to float32.

  Raises:
    InputError: the file cannot be read, is of another model, or describes a network that ours cannot be.
  """
  content = torch_pickle.read(path, only=('model', 'cfg', 'args'))
  try:
    if not isinstance(content.get('model'), dict):
      raise InputError('has no dict of weights under "model"; give a pretraining checkpoint of fairseq')
    state = dict(content['model'])
    teacher_state = state.pop('_ema', None)
    cfg = fairseq_config.normalise(content)
    params, account = map_tensors(state)
    config, notes = fairseq_config.config_from(cfg)
    _check_positions(state, config)
    _check_sizes(params, config)
    teacher, teacher_account = (None, None) if teacher_state is None else map_tensors(teacher_state)
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  if 'decoder' not in params:
    notes.append('decoder: not in the file; features need none, training would start with a new one')
  if teacher is None:
    notes.append('teacher: not in the file (no "_ema")')
  notes.append('optimizer state, progress and task state of the file are not imported')
  return ImportedCheckpoint(params, teacher, config, account, teacher_account, notes)


def map_tensors(state: dict) -> tuple[dict, Account]:
  """Returns (our parameters, the account) of a student's or teacher's flat state dict; raises as `student_params`."""
  state = _modern_names(state)
  layout = _layout(state)
  unexpected = [name for name in state if name not in layout]
  missing = [name for name, tensor in layout.items() if tensor.ours and name not in state]
  if unexpected:
    hint = f' ({missing[0]!r} is missing)' if missing else ''
    raise InputError(f'unexpected tensor {unexpected[0]!r}{hint}; only models as released can be read')
  if missing:
    raise InputError(f'tensor {missing[0]!r} is missing ({len(missing)} in all); fetch or copy the checkpoint again')
  params, account = {}, Account({}, {}, 0)
  for name, value in state.items():
    tensor = layout[name]
    if value.shape != tensor.shape:
      raise InputError(f'tensor {name!r} has shape {list(value.shape)}, the other tensors ask for {list(tensor.shape)}')
    if not tensor.ours:
      account.unused[name] = tensor.unused
      continue
    account.used[name] = list(tensor.ours)
    for path, convert in tensor.ours.items():
      *parents, leaf = path.split('/')
      node = params
      for parent in parents:
        node = node.setdefault(parent, {})
      node[leaf] = np.array(convert(value), np.float32, order='C')
      account.parameters += node[leaf].size
  return params, account


def _modern_names(state):
  """Undoes the renamings between versions of the reference."""
  modern = {}
  for name, value in state.items():
    if not isinstance(value, np.ndarray):
      raise InputError(f'{name!r} holds a {type(value).__name__}, not a tensor; only data2vec 2.0 image models can be read')
    name = re.sub(r'\.(fixed_)?positional_encoder\.(pos_embed|positions)$', '.fixed_positional_encoder.positions', name)
    if name.endswith('.alibi_scale') and value.ndim == 4:
      value = value[None]
    modern[name] = value
  return modern


def _layout(state):
  """The layout of the modality whose tensors these are."""
  modalities = sorted({match[1] for name in state if (match := re.match(r'modality_encoders\.([A-Z]+)\.', name))})
  if any(re.match(r'(model|w2v_encoder|classification_heads)\.', name) for name in state):
    raise InputError('a fine-tuned model; only pretraining checkpoints can be read so far')
  if not modalities:
    raise InputError('no tensor of a modality encoder ("modality_encoders.IMAGE...."); only data2vec 2.0 models can be read')
  if modalities not in [[known] for known in LAYOUTS]:
    raise InputError(
      f'a model of {", ".join(modalities).lower()}; only {", ".join(LAYOUTS).lower()} models can be read so far'
    )
  return LAYOUTS[modalities[0]](state)


def _image_layout(state):
  prefix = 'modality_encoders.IMAGE.'
  width, channels, patch, _ = _shape(state, prefix + 'local_encoder.proj.weight', 4)
  hidden, _ = _shape(state, 'blocks.0.mlp.fc1.weight', 2)
  layout = {
    prefix + 'local_encoder.proj.weight': Tensor(
      (width, channels, patch, patch),
      {'encoder/local_encoder/projection/kernel': lambda w: w.transpose(2, 3, 1, 0).reshape(-1, width)},
    ),
    prefix + 'local_encoder.proj.bias': Tensor((width,), {'encoder/local_encoder/projection/bias': np.asarray}),
    **_norm(prefix + 'context_encoder.norm', 'encoder/norm', width),
    **_blocks(state, prefix + 'context_encoder.', 'encoder/prenet', width, hidden),
    **_blocks(state, '', 'encoder/block', width, hidden),
    **_convolutional_decoder(state, prefix, width),
  }
  if (extra := prefix + 'extra_tokens') in state:
    layout[extra] = Tensor((1, _shape(state, extra, 3)[1], width), {'encoder/extra_tokens': lambda w: w[0]})
  if (positions := prefix + 'fixed_positional_encoder.positions') in state:
    _check_sincos(state[positions], width)
    layout[positions] = Tensor(state[positions].shape, {}, f'fixed sine-cosine table in {state[positions].dtype}: computed')
  if (scale := prefix + 'alibi_scale') in state:
    if np.ptp(state[scale]) > 0:
      raise InputError(f'tensor {scale!r} holds learned ALiBi scales, which image models here do not have')
    layout[scale] = Tensor(state[scale].shape, {}, 'constant ALiBi scale: config.model.alibi_scale')
  for name, reason in (
    (prefix + 'encoder_mask', 'left over from an early version of the reference'),
    (prefix + 'alibi_bias', 'a table: computed'),
    ('recon_proj.weight', 'projection of the unused reconstruction loss'),
    ('recon_proj.bias', 'projection of the unused reconstruction loss'),
  ):
    if name in state:
      layout[name] = Tensor(state[name].shape, {}, reason)
  return layout


LAYOUTS = {'IMAGE': _image_layout}


def _shape(state, name, rank):
  if name not in state:
    raise InputError(f'tensor {name!r} is missing; fetch or copy the checkpoint again')
  if state[name].ndim != rank:
    raise InputError(f'tensor {name!r} has shape {list(state[name].shape)}, not {rank} axes')
  return state[name].shape


def _count(state, prefix):
  """How many numbered modules `prefix` has; numbers beyond that are then unexpected names."""
  pattern = re.compile(re.escape(prefix) + r'(\d+)\.')
  return len({match[1] for name in state if (match := pattern.match(name))})


def _norm(name, ours, width):
  return {
    name + '.weight': Tensor((width,), {ours + '/scale': np.asarray}),
    name + '.bias': Tensor((width,), {ours + '/bias': np.asarray}),
  }


def _linear(name, ours, size_in, size_out):
  return {
    name + '.weight': Tensor((size_out, size_in), {ours + '/kernel': np.transpose}),
    name + '.bias': Tensor((size_out,), {ours + '/bias': np.asarray}),
  }


def _blocks(state, prefix, ours, width, hidden):
  """Transformer blocks. The fused projection holds the rows of query, then key, then value, each head after head."""
  layout = {}
  for i in range(_count(state, prefix + 'blocks.')):
    name, path = f'{prefix}blocks.{i}', f'{ours}_{i}'
    parts = [(part, slice(j * width, (j + 1) * width)) for j, part in enumerate(('query', 'key', 'value'))]
    layout |= {
      f'{name}.attn.qkv.weight': Tensor(
        (3 * width, width), {f'{path}/attention/{part}/kernel': lambda w, rows=rows: w[rows].T for part, rows in parts}
      ),
      f'{name}.attn.qkv.bias': Tensor(
        (3 * width,), {f'{path}/attention/{part}/bias': lambda w, rows=rows: w[rows] for part, rows in parts}
      ),
      **_linear(f'{name}.attn.proj', f'{path}/attention/output', width, width),
      **_norm(f'{name}.norm1', f'{path}/norm1', width),
      **_norm(f'{name}.norm2', f'{path}/norm2', width),
      **_linear(f'{name}.mlp.fc1', f'{path}/mlp/fc1', width, hidden),
      **_linear(f'{name}.mlp.fc2', f'{path}/mlp/fc2', hidden, width),
    }
  return layout


def _convolutional_decoder(state, prefix, width):
  """The 2-D decoder, if there is any of it. How many groups there are shows in how many channels the first kernel reads."""
  prefix += 'decoder.'
  if not any(name.startswith(prefix) for name in state):
    return {}
  dim, channels, kernel, _ = _shape(state, prefix + 'blocks.0.0.weight', 4)
  layout = _linear(prefix + 'proj', 'decoder/projection', dim, width)
  for i in range(_count(state, prefix + 'blocks.')):
    shape = (dim, channels if i == 0 else dim * channels // width, kernel, kernel)
    layout[f'{prefix}blocks.{i}.0.weight'] = Tensor(shape, {f'decoder/conv_{i}/kernel': lambda w: w.transpose(2, 3, 1, 0)})
    layout[f'{prefix}blocks.{i}.0.bias'] = Tensor((dim,), {f'decoder/conv_{i}/bias': np.asarray})
  return layout


def _check_sincos(table, width):
  side = math.isqrt(table.shape[-2])
  expected = sincos_2d(width, (side, side))[None]
  tolerance = 1e-5 if table.dtype == np.float32 else 5e-3  # of half precision
  if table.shape != expected.shape or not np.abs(table.astype(np.float32) - expected).max() <= tolerance:
    raise InputError('the fixed positions are not the sine-cosine table; only models with those can be read')


def _check_positions(state, config):
  """Sees that the config gives the table of fixed positions that is in the file, if one is, rounding included."""
  for name, value in _modern_names(state).items():
    if name.endswith('.fixed_positional_encoder.positions'):
      config.model.positions_dtype = str(value.dtype)
      side = config.data.image_size // config.model.patch_size
      if side**2 != value.shape[1]:
        raise InputError(
          f'its config and its tensors disagree: input_size gives {side**2} patches, {name!r} {value.shape[1]}'
        )


def _check_sizes(params, config):
  """Refuses a file whose tensors and config disagree."""
  encoder, model = params['encoder'], config.model
  pixels, width = encoder['local_encoder']['projection']['kernel'].shape
  sizes = {
    'embed_dim': (model.embed_dim, width),
    'patch_size': (model.patch_size, math.isqrt(pixels // 3)),
    'prenet_depth': (model.prenet_depth, sum(name.startswith('prenet_') for name in encoder)),
    'depth': (model.depth, sum(name.startswith('block_') for name in encoder)),
    'mlp_ratio': (model.mlp_ratio * width, encoder['block_0']['mlp']['fc1']['bias'].size),
    'num_extra_tokens': (model.extra_tokens, len(encoder.get('extra_tokens', ()))),
    'num_heads (a divisor of embed_dim)': (0, width % model.num_heads),
  }
  if 'decoder' in params:
    kernel = params['decoder']['conv_0']['kernel']
    sizes |= {
      'decoder_layers': (config.decoder.layers, len(params['decoder']) - 1),
      'decoder_kernel': (config.decoder.kernel, kernel.shape[0]),
      'decoder_dim': (config.decoder.dim, kernel.shape[-1]),
      'decoder_groups': (config.decoder.groups, width // kernel.shape[2]),
    }
  for name, (configured, found) in sizes.items():
    if configured != found:
      raise InputError(f'its config and its tensors disagree: {name} gives {configured}, the tensors say {found}')
