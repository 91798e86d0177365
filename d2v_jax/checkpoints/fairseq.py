"""Weights of the reference implementation (fairseq, `examples/data2vec`) as our parameters.

Every tensor of a checkpoint is accounted for: it becomes one or more of our arrays, or is listed with the reason why not.
One that is missing, unexpected or of the wrong shape is refused. Sizes are read from the tensors and checked against the
config that stands in the checkpoint. A modality is one function that lays out its tensors (`LAYOUTS`).
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from d2v_jax.checkpoints import fairseq_config, torch_pickle
from d2v_jax.data.letters import VOCABULARY
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
    params: student of pretraining, {'encoder': ..., 'decoder': ...} of float32 arrays, without 'decoder' if the file has
      none; or a fine-tuned model, {'encoder': ..., 'head': ...}.
    teacher: {'encoder': ...}, without what teacher and student share; None if the file has no teacher.
    config: full config of the run that made it, as far as the file tells; `config.task` says what it is.
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
  """Returns our parameters from a flat state dict of the reference (name -> array), of pretraining or fine-tuned.

  Works for anything shaped like the student, gradients for example; fixed positions may be absent. An ALiBi scale counts as
  a parameter.

  Raises:
    InputError: names the tensor that is missing, unexpected or of the wrong shape.
  """
  return _map_tensors(state)[0]


def teacher_params(state: dict) -> dict:
  """Returns our teacher parameters, {'encoder': ...}, from the dict under the reference's `_ema`; raises likewise."""
  return _map_tensors(state, _teacher_scope(state))[0]


def import_checkpoint(path) -> ImportedCheckpoint:
  """Reads a `.pt` file of the reference; see `ImportedCheckpoint`. Half-precision weights are cast to float32.

  Raises:
    InputError: the file cannot be read, is of another model, or describes a network that ours cannot be.
  """
  content = torch_pickle.read(path, only=('model', 'cfg', 'args', 'task_state'))
  try:
    if not isinstance(content.get('model'), dict):
      raise InputError('has no dict of weights under "model"; give a checkpoint of fairseq, of pretraining or fine-tuned')
    state = dict(content['model'])
    names = [prefix + '_ema' for prefix in PREFIXES.values()]
    teacher_states = [state.pop(name) for name in names if isinstance(state.get(name), dict)]
    cfg = fairseq_config.normalise(content)
    cfg['model.supported_modality'] = _modality(state)
    config, notes = fairseq_config.config_from(cfg)
    if config.task != _task(state):
      raise InputError(
        f'its config is of {cfg["model._name"]!r}, its tensors are of another model; give the file as written'
      )
    notes += _settle_alibi(state, config)
    learned = config.model.alibi_learned
    params, account = _map_tensors(state, alibi_learned=learned)
    _check_positions(state, config)
    _check_sizes(params, config)
    if config.task == 'ctc':
      notes += _check_letters(content.get('task_state'), params['head']['bias'].size)
    if config.modality == 'text':
      notes += _settle_text(params, config)
    teacher, teacher_account = None, None
    if teacher_states and config.task == 'pretrain':
      scope = _teacher_scope(teacher_states[0])
      if scope != (configured := config.data2vec2.teacher_scope):
        raise InputError(
          'its config and its tensors disagree: ema_encoder_only and ema_local_encoder give a teacher of the scope '
          f'{configured!r}, "_ema" holds one of {scope!r}'
        )
      teacher, teacher_account = _map_tensors(teacher_states[0], scope, alibi_learned=learned)
      _check_teacher(teacher, params, scope)
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  if config.task == 'pretrain' and 'decoder' not in params:
    notes.append('decoder: not in the file; features need none, training would start with a new one')
  if config.task == 'pretrain' and teacher is None:
    notes.append('teacher: not in the file (no "_ema")')
  if config.task != 'pretrain' and teacher_states:
    notes.append('teacher: left over from the pretraining, not imported')
  notes.append('optimizer state, progress and task state of the file are not imported')
  return ImportedCheckpoint(params, teacher, config, account, teacher_account, notes)


def _map_tensors(state, scope='all', alibi_learned=True) -> tuple[dict, Account]:
  """Returns (our parameters, the account) of a flat state dict; raises as `student_params`.

  The dict must hold what the scope says, as in `config.data2vec2.teacher_scope`, and no more. An ALiBi scale that is not
  learned is no parameter.
  """
  state = _modern_names(state)
  layout = _layout(state, scope, alibi_learned)
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
      raise InputError(f'{name!r} holds a {type(value).__name__}, not a tensor; only data2vec 2.0 models can be read')
    name = re.sub(r'\.(fixed_)?positional_encoder\.(pos_embed|positions)$', '.fixed_positional_encoder.positions', name)
    if name.endswith('.alibi_scale') and value.ndim == 4:
      value = value[None]
    modern[name] = value
  return modern


def _modality(state):
  """The modality whose tensors these are."""
  found = sorted({match[1] for name in state if (match := re.search(r'(?:^|\.)modality_encoders\.([A-Z]+)\.', name))})
  known = ', '.join(LAYOUTS).lower()
  if not found:
    raise InputError(
      f'no tensor of a modality encoder ("modality_encoders.AUDIO...."); only data2vec 2.0 models of {known} can be read'
    )
  if found not in [[modality] for modality in LAYOUTS]:
    raise InputError(f'a model of {", ".join(found).lower()}; only {known} models can be read so far')
  return found[0]


def _task(state):
  """The task of the model whose tensors these are."""
  if any(name.startswith(PREFIXES['ctc']) for name in state):
    return 'ctc'
  if any(name.startswith(CLASSIFICATION_HEADS) for name in state):
    return 'sentence'
  if any(re.match(r'(model|w2v_encoder)\.', name) for name in state):
    raise InputError('a fine-tuned model, neither with CTC nor on a task of sentences: only those can be read so far')
  return 'pretrain'


def _layout(state, scope, alibi_learned):
  """The layout of the model, or of the part of it that the scope says, whose tensors these are."""
  if scope == 'blocks':
    hidden, width = _shape(state, '0.mlp.fc1.weight', 2)
    return _blocks(state, '', 'encoder/block', width, hidden)
  task, layout = _task(state), LAYOUTS[_modality(state)]
  if task == 'pretrain':
    return layout(state, scope == 'all', alibi_learned)
  return _fine_tuned_layout(state, task, layout, alibi_learned)


def _teacher_scope(state):
  """What a teacher with these tensors averages, in the words of `config.data2vec2.teacher_scope`."""
  if any(re.match(r'\d+\.', name) for name in state):
    return 'blocks'
  return 'all' if any('.local_encoder.' in name for name in state) else 'context'


def _fine_tuned_layout(state, task, layout, alibi_learned):
  """The pretrained model without its decoder, and a head."""
  prefix, make_head = PREFIXES[task], {'ctc': _ctc_head, 'sentence': _sentence_head}[task]
  pretrained = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
  decoder = {name: value for name, value in pretrained.items() if '.decoder.' in name}
  encoder = {name: value for name, value in pretrained.items() if name not in decoder}
  _, width = _shape(encoder, 'blocks.0.mlp.fc1.weight', 2)
  return {
    **{prefix + name: tensor for name, tensor in layout(encoder, True, alibi_learned).items()},
    **{prefix + name: Tensor(value.shape, {}, 'decoder of the pretraining') for name, value in decoder.items()},
    **make_head(state, width),
  }


def _ctc_head(state, width):
  """A linear layer to the letters."""
  name = 'w2v_encoder.proj'
  (letters,) = _shape(state, name + '.bias', 1)
  return _linear(name, 'head', width, letters)


def _sentence_head(state, width):
  """Two linear layers, to the classes or the one number of a task; the head may have any name."""
  names = sorted(
    {name.removeprefix(CLASSIFICATION_HEADS).partition('.')[0] for name in state if name.startswith(CLASSIFICATION_HEADS)}
  )
  if len(names) > 1:
    raise InputError(f'several classification heads: {", ".join(names)}; only models with one can be read')
  name = CLASSIFICATION_HEADS + names[0]
  (outputs,) = _shape(state, name + '.out_proj.bias', 1)
  return {
    **_linear(name + '.dense', 'head/dense', width, width),
    **_linear(name + '.out_proj', 'head/output', width, outputs),
  }


def _image_layout(state, local_encoder, alibi_learned):
  prefix = 'modality_encoders.IMAGE.'
  layout, width = _common_layout(state, prefix, 2, alibi_learned)
  if local_encoder:
    _, channels, patch, _ = _shape(state, prefix + 'local_encoder.proj.weight', 4)
    layout |= {
      prefix + 'local_encoder.proj.weight': Tensor(
        (width, channels, patch, patch),
        {'encoder/local_encoder/projection/kernel': lambda w: w.transpose(2, 3, 1, 0).reshape(-1, width)},
      ),
      prefix + 'local_encoder.proj.bias': Tensor((width,), {'encoder/local_encoder/projection/bias': np.asarray}),
    }
  if (positions := prefix + 'fixed_positional_encoder.positions') in state:
    _check_sincos(state[positions], width)
    layout[positions] = Tensor(state[positions].shape, {}, f'fixed sine-cosine table in {state[positions].dtype}: computed')
  return layout


def _audio_layout(state, local_encoder, alibi_learned):
  prefix = 'modality_encoders.AUDIO.'
  layout, width = _common_layout(state, prefix, 1, alibi_learned)
  positions = prefix + 'relative_positional_encoder.'
  if positions + '0.weight' in state:
    layout |= _norm(positions + '0', 'encoder/conv_positions/norm', width)
    positions += '1.'
  _, channels, kernel = _shape(state, positions + '1.0.weight', 3)
  for i in range(_count(state, positions)):
    layout |= _convolution(f'{positions}{i + 1}.0', f'encoder/conv_positions/conv_{i}', (width, channels, kernel))
  if not local_encoder:
    return layout
  channels = 1
  for i in range(max(1, _count(state, prefix + 'local_encoder.conv_layers.'))):  # at least one must be there
    name, ours = f'{prefix}local_encoder.conv_layers.{i}', 'encoder/local_encoder'
    features, _, kernel = _shape(state, name + '.0.weight', 3)
    layout[name + '.0.weight'] = Tensor((features, channels, kernel), {f'{ours}/conv_{i}/kernel': np.transpose})
    layout |= _norm(name + '.2.1', f'{ours}/norm_{i}', features)
    channels = features
  layout |= _norm(prefix + 'project_features.1', 'encoder/local_encoder/norm', channels)
  layout |= _linear(prefix + 'project_features.2', 'encoder/local_encoder/projection', channels, width)
  return layout


def _text_layout(state, local_encoder, alibi_learned):
  prefix = 'modality_encoders.TEXT.'
  # The embeddings have a norm of their own.
  entry_norm = any(name.startswith(prefix + 'context_encoder.blocks.') for name in state)
  layout, width = _common_layout(state, prefix, 1, alibi_learned, entry_norm)
  if local_encoder:
    for name, ours in (('embed_tokens', 'token_embedding'), ('embed_positions', 'position_embedding')):
      table = f'{prefix}local_encoder.{name}.weight'
      rows, _ = _shape(state, table, 2)
      layout[table] = Tensor((rows, width), {f'encoder/local_encoder/{ours}': np.asarray})
    layout |= _norm(prefix + 'local_encoder.layernorm_embedding', 'encoder/local_encoder/norm', width)
  return layout


LAYOUTS = {'IMAGE': _image_layout, 'AUDIO': _audio_layout, 'TEXT': _text_layout}
# In front of the names of the pretrained model, by task.
PREFIXES = {'pretrain': '', 'ctc': 'w2v_encoder.w2v_model.', 'sentence': 'model.'}
CLASSIFICATION_HEADS = 'classification_heads.'


def _common_layout(state, prefix, grid_rank, alibi_learned, entry_norm=True):
  """(What all modalities have, the width): blocks, norm, decoder on a grid of that rank, extra tokens, ALiBi scale."""
  hidden, width = _shape(state, 'blocks.0.mlp.fc1.weight', 2)
  layout = {
    **(_norm(prefix + 'context_encoder.norm', 'encoder/norm', width) if entry_norm else {}),
    **_blocks(state, prefix + 'context_encoder.blocks.', 'encoder/prenet', width, hidden),
    **_blocks(state, 'blocks.', 'encoder/block', width, hidden),
    **_decoder(state, prefix + 'decoder.', width, grid_rank),
  }
  if (extra := prefix + 'extra_tokens') in state:
    layout[extra] = Tensor((1, _shape(state, extra, 3)[1], width), {'encoder/extra_tokens': lambda w: w[0]})
  if (scale := prefix + 'alibi_scale') in state:
    layers, _, heads, _, _ = _shape(state, scale, 5)
    if alibi_learned:
      layout[scale] = Tensor((layers, 1, heads, 1, 1), {'encoder/alibi_scale': lambda w: w[:, 0, :, 0, 0]})
    elif np.ptp(state[scale]) > 0:
      raise InputError(f'tensor {scale!r} holds learned ALiBi scales, but its config has no ALiBi')
    else:
      layout[scale] = Tensor(state[scale].shape, {}, 'constant ALiBi scale: config.model.alibi_scale')
  for name, reason in (
    (prefix + 'encoder_mask', 'left over from an early version of the reference'),
    (prefix + 'alibi_bias', 'a table: computed'),
    ('recon_proj.weight', 'projection of the unused reconstruction loss'),
    ('recon_proj.bias', 'projection of the unused reconstruction loss'),
  ):
    if name in state:
      layout[name] = Tensor(state[name].shape, {}, reason)
  return layout, width


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
  for i in range(_count(state, prefix)):
    name, path = f'{prefix}{i}', f'{ours}_{i}'
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


def _convolution(name, ours, shape):
  """A convolution with bias, of any rank; its kernel has the shape [out, in / groups, ...]."""
  return {
    name + '.weight': Tensor(shape, {ours + '/kernel': lambda w: w.transpose(*range(2, w.ndim), 1, 0)}),
    name + '.bias': Tensor(shape[:1], {ours + '/bias': np.asarray}),
  }


def _decoder(state, prefix, width, rank):
  """The decoder, if there is any of it. How many groups there are shows in how many channels the first kernel reads."""
  if not any(name.startswith(prefix) for name in state):
    return {}
  dim, channels, kernel, *_ = _shape(state, prefix + 'blocks.0.0.weight', 2 + rank)
  layout = {}
  for i in range(_count(state, prefix + 'blocks.')):
    shape = (dim, channels if i == 0 else dim * channels // width, *(kernel,) * rank)
    layout |= _convolution(f'{prefix}blocks.{i}.0', f'decoder/conv_{i}', shape)
  hidden_layers = _count(state, prefix + 'proj.') - 1  # with activations between them, so every other number
  if hidden_layers < 0:
    return layout | _linear(prefix + 'proj', 'decoder/projection', dim, width)
  size = dim
  for i in range(hidden_layers):
    hidden, _ = _shape(state, f'{prefix}proj.{2 * i}.weight', 2)
    layout |= _linear(f'{prefix}proj.{2 * i}', f'decoder/hidden_{i}', size, hidden)
    size = hidden
  return layout | _linear(f'{prefix}proj.{2 * hidden_layers}', 'decoder/projection', size, width)


def _check_sincos(table, width):
  side = math.isqrt(table.shape[-2])
  expected = sincos_2d(width, (side, side))[None]
  tolerance = 1e-5 if table.dtype == np.float32 else 5e-3  # of half precision
  if table.shape != expected.shape or not np.abs(table.astype(np.float32) - expected).max() <= tolerance:
    raise InputError('the fixed positions are not the sine-cosine table; only models with those can be read')


def _settle_alibi(state, config):
  """Makes the config say what the ALiBi scale in the file is, a parameter or a constant; returns notes."""
  model = config.model
  scale = next((value for name, value in state.items() if name.endswith('.alibi_scale')), None)
  if scale is None or not model.alibi or model.alibi_learned:
    return []
  if np.ptp(scale) == 0:
    model.alibi_scale = max(0.0, float(scale.flat[0]))
    return []
  model.alibi_learned = True
  return ['its ALiBi scales were learned before, not in this run (learned_alibi_scale is False): ours would go on']


def _settle_text(params, config):
  """Makes the config say what of a text model only the tensors tell; returns notes on what the file lacks."""
  config.model.vocab_size = len(params['encoder']['local_encoder']['token_embedding'])
  notes = ['tokenizer: not in the file; give config.data.tokenizer the folder of its encoder.json, vocab.bpe and dict.txt']
  if config.task == 'sentence':
    if (outputs := params['head']['output']['bias'].size) == 1:
      config.sentence.update(kind='regression', metric='pearson_spearman')
    else:
      notes.append(f'labels: not in the file; its {outputs} outputs are in the order of its dictionary of labels')
  return notes


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
  local, width = encoder['local_encoder'], encoder['block_0']['norm1']['bias'].size
  counted = lambda layers, name: sum(layer.startswith(name + '_') for layer in layers)
  scales = (
    model.prenet_depth + model.depth if model.alibi_per_layer else 1,
    model.num_heads if model.alibi_per_head else 1,
  )
  sizes = {
    'embed_dim': (model.embed_dim, width),
    'prenet_depth': (model.prenet_depth, counted(encoder, 'prenet')),
    'depth': (model.depth, counted(encoder, 'block')),
    'mlp_ratio': (model.mlp_ratio * width, encoder['block_0']['mlp']['fc1']['bias'].size),
    'num_extra_tokens': (model.extra_tokens, len(encoder.get('extra_tokens', ()))),
    'num_heads (a divisor of embed_dim)': (0, width % model.num_heads),
    'learned_alibi_scale, by layers and heads,': (
      scales if model.alibi_learned else None,
      encoder['alibi_scale'].shape if 'alibi_scale' in encoder else None,
    ),
  }
  if config.modality == 'image':
    sizes['patch_size'] = (model.patch_size, math.isqrt(len(local['projection']['kernel']) // 3))
  if config.modality == 'audio':
    positions, ours = encoder['conv_positions'], model.conv_positions
    kernel = positions['conv_0']['kernel']
    kernels = [local[f'conv_{i}']['kernel'] for i in range(counted(local, 'conv'))]
    sizes |= {
      'feature_encoder_spec, by (channels, kernel),': (
        [(channels, size) for channels, size, _ in model.conv_layers],
        [(kernel.shape[2], kernel.shape[0]) for kernel in kernels],
      ),
      'conv_pos_depth': (ours.layers, counted(positions, 'conv')),
      'conv_pos_width, for one layer,': (ours.kernel, len(kernel)),
      'conv_pos_groups': (ours.groups, width // kernel.shape[1]),
      'conv_pos_pre_ln': (ours.pre_norm, 'norm' in positions),
    }
  if config.modality == 'text':
    sizes['max_source_positions'] = (model.max_positions, len(local['position_embedding']) - 2)  # rows 0 and 1 are no places
  if 'decoder' in params:
    decoder, ours = params['decoder'], config.decoder
    kernel = decoder['conv_0']['kernel']
    sizes |= {
      'decoder_layers': (ours.layers, counted(decoder, 'conv')),
      'decoder_kernel': (ours.kernel, len(kernel)),
      'decoder_dim': (ours.dim, kernel.shape[-1]),
      'decoder_groups': (ours.groups, width // kernel.shape[-2]),
      'projection_layers': (ours.projection_layers, 1 + counted(decoder, 'hidden')),
    }
    if 'hidden_0' in decoder:
      sizes['projection_ratio'] = (int(ours.dim * ours.projection_ratio), len(decoder['hidden_0']['bias']))
  for name, (configured, found) in sizes.items():
    if configured != found:
      raise InputError(f'its config and its tensors disagree: {name} gives {configured}, the tensors say {found}')


def _check_teacher(teacher, params, scope):
  """Refuses a teacher that is no average of this student."""
  averaged = {
    'all': lambda name: True,
    'context': lambda name: name != 'local_encoder',
    'blocks': lambda name: name.startswith('block_'),
  }[scope]
  shapes = lambda tree: {name: leaf.shape for name, leaf in fairseq_config.flatten(tree).items()}
  expected = shapes({name: tree for name, tree in params['encoder'].items() if averaged(name)})
  found = shapes(teacher['encoder'])
  if differing := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
    name = differing[0]
    raise InputError(
      f'its student and its teacher ("_ema") disagree: encoder.{name} is {expected.get(name, "missing")} in the one, '
      f'{found.get(name, "missing")} in the other; fetch or copy the checkpoint again'
    )


def _check_letters(task_state, outputs):
  """Refuses a head whose outputs are other letters than ours, as far as the file tells; returns notes."""
  match task_state:
    case {'target_dictionary': {'symbols': [*symbols]}}:
      notes = []
      for i, (found, ours) in enumerate(itertools.zip_longest(symbols, VOCABULARY)):
        if found != ours:
          raise InputError(
            f'letter {i} of its dictionary is {found!r}, not {ours!r}; only those of dict.ltr.txt can be read'
          )
    case _:
      notes = ['letters: the file has no dictionary, so they are taken to be those of dict.ltr.txt, in order']
  if outputs != len(VOCABULARY):
    raise InputError(f"tensor 'w2v_encoder.proj.bias' has {outputs} letters; only models of {len(VOCABULARY)} can be read")
  return notes
