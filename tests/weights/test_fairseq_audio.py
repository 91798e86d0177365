"""The reference's checkpoints of speech, pretrained and fine-tuned with CTC."""

import functools
import itertools
import json
import re

import jax
import numpy as np
import pytest

from d2v_jax import convert
from d2v_jax.checkpoints import fairseq, fairseq_config, manager, torch_pickle
from d2v_jax.config import to_dict, validate
from d2v_jax.errors import InputError
from tests.weights.handmade_pickles import Name, New, Storage, tensor, write_zip
from tests.weights.test_fairseq import FORMS, GOLDEN, add, assert_same, drop, golden_state, setting, write_changed

CASE = GOLDEN / 'd2v2_audio'
AUDIO = 'modality_encoders.AUDIO.'
SECTION = 'model.modalities.audio.'
CTC = 'w2v_encoder.w2v_model.'
LETTERS = ['<s>', '<pad>', '</s>', '<unk>', '|', *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
WIDTH, CHANNELS, HEADS, BLOCKS = 32, 24, 4, 5


@pytest.fixture(scope='module')
def content():
  """The golden checkpoint as it was read, with a config of plain dicts."""
  return torch_pickle.read(CASE / 'checkpoint_fp16_dictcfg.pt')


@pytest.fixture
def rewrite(content, tmp_path):
  """Writes the golden checkpoint again, changed by a function (of the weights, the teacher's and the config)."""
  return functools.partial(write_changed, tmp_path / 'changed.pt', content)


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def convolved(x, kernel):
  """Grouped cross-correlation without padding, [in, length] * [out, in / groups, k] -> [out, length], as PyTorch has it."""
  out, inputs, size = kernel.shape
  groups = len(x) // inputs
  windows = np.stack([x[:, i : x.shape[1] - size + 1 + i] for i in range(size)], axis=1)
  windows = windows.reshape(groups, inputs, size, -1)
  return np.einsum('goik,gikt->got', kernel.reshape(groups, out // groups, inputs, size), windows).reshape(out, -1)


def convolved_by_jax(x, kernel):
  """The same by a kernel [k, in / groups, out], as our layers use it."""
  groups = len(x) // kernel.shape[1]
  y = jax.lax.conv_general_dilated(
    x.T[None], kernel, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC'), feature_group_count=groups
  )
  return np.asarray(y[0]).T


@pytest.mark.parametrize('form', FORMS)
def test_all_forms_hold_the_expected_weights(form):
  imported = fairseq.import_checkpoint(CASE / form)
  student, teacher = golden_state(CASE, 'student'), golden_state(CASE, 'teacher')
  if 'fp16' in form:
    student = {name: value.astype(np.float16) for name, value in student.items()}
  assert_same(imported.params, fairseq.student_params(student))
  assert_same(imported.teacher, fairseq.teacher_params(teacher))
  assert {leaf.dtype for leaf in jax.tree.leaves((imported.params, imported.teacher))} == {np.dtype(np.float32)}
  assert set(imported.params) == {'encoder', 'decoder'}
  assert set(imported.params['encoder']) - set(imported.teacher['encoder']) == {'local_encoder'}
  for account, state, params in (
    (imported.student_account, student, imported.params),
    (imported.teacher_account, teacher, imported.teacher),
  ):
    assert set(account.used) == set(state) and not account.unused
    arrays = [path for paths in account.used.values() for path in paths]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert sorted(arrays) == sorted(jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves)
    assert account.parameters == sum(value.size for value in state.values())
  validate(imported.config)


def test_layouts():
  """Each rule by what the layer computes, not how its weights are moved about."""
  state = golden_state(CASE, 'student')
  params = fairseq.student_params(state)
  local = params['encoder']['local_encoder']
  close = functools.partial(np.testing.assert_allclose, atol=1e-4)
  for i, inputs in enumerate((1, CHANNELS, CHANNELS, CHANNELS)):
    x, kernel = random(inputs, 20), state[f'{AUDIO}local_encoder.conv_layers.{i}.0.weight']
    close(convolved_by_jax(x, local[f'conv_{i}']['kernel']), convolved(x, kernel))
    for ours, theirs in (('scale', 'weight'), ('bias', 'bias')):
      close(local[f'norm_{i}'][ours], state[f'{AUDIO}local_encoder.conv_layers.{i}.2.1.{theirs}'])
  close(local['norm']['bias'], state[AUDIO + 'project_features.1.bias'])
  x = random(5, CHANNELS)
  projected = x @ state[AUDIO + 'project_features.2.weight'].T + state[AUDIO + 'project_features.2.bias']
  close(x @ local['projection']['kernel'] + local['projection']['bias'], projected)
  for ours, theirs, inputs in (
    *((('encoder', 'conv_positions', f'conv_{i}'), f'relative_positional_encoder.{i + 1}.0', WIDTH) for i in range(3)),
    *((('decoder', f'conv_{i}'), f'decoder.blocks.{i}.0', WIDTH if i == 0 else CHANNELS) for i in range(3)),
  ):
    layer = functools.reduce(dict.__getitem__, ours, params)
    x = random(inputs, 20)
    close(convolved_by_jax(x, layer['kernel']), convolved(x, state[f'{AUDIO}{theirs}.weight']))
    close(layer['bias'], state[f'{AUDIO}{theirs}.bias'])
  close(params['encoder']['alibi_scale'], state[AUDIO + 'alibi_scale'].reshape(1, HEADS))


def test_gradients_map_like_weights():
  with np.load(CASE / 'grads.npz') as grads:
    shapes = lambda state: jax.tree.map(np.shape, fairseq.student_params(state))
    assert_same(shapes(dict(grads)), shapes(golden_state(CASE, 'student')))


def test_config_is_read_whole():
  model = json.loads((CASE / 'config.json').read_text())['model']
  audio = model['modalities']['audio']
  config = fairseq.import_checkpoint(CASE / 'checkpoint.pt').config
  assert (config.task, config.modality) == ('pretrain', 'audio')
  for ours, theirs in (
    (config.model.depth, model['depth']),
    (config.model.num_heads, model['num_heads']),
    (config.model.prenet_depth, audio['prenet_depth']),
    (config.model.layer_drop, model['layerdrop']),
    (config.mask.ratio, audio['mask_prob']),
    (config.mask.block_size, audio['mask_length']),
    (config.data2vec2.masks_per_example, model['clone_batch']),
    (config.decoder.groups, audio['decoder']['decoder_groups']),
    (config.model.conv_positions.groups, audio['conv_pos_groups']),
  ):
    assert ours == theirs
  assert config.model.conv_layers == ((24, 10, 5), (24, 3, 2), (24, 3, 2), (24, 2, 2))
  positions = config.model.conv_positions
  assert (positions.layers, positions.kernel, positions.pre_norm, positions.see_padding) == (3, 15 // 3, False, True)
  assert (config.model.alibi, config.model.alibi_learned) == ('manhattan', True)
  assert (config.model.alibi_per_head, config.model.alibi_per_layer) == (True, False)
  assert (config.data2vec2.teacher_scope, config.data2vec2.target_layer_norms) == ('context', ('instance',))
  # 8 workers with 1,000,000 samples of clips up to 320,000; the learning rate and so on of the tiny run or the recipe.
  assert (config.batch_size, config.data.bucket_seconds[0], config.data.bucket_seconds[-1]) == (24, 2.0, 20.0)
  assert (config.learning_rate, config.schedule.warmup_steps, config.optimizer.eps) == (2e-3, 8_000, 1e-6)
  assert fairseq_config.differences(config)[0] == 'audio_base'


def test_rates_and_buckets(rewrite):
  settings = {
    'model.encoder_dropout': 0.11,
    'model.attention_dropout': 0.12,
    'model.activation_dropout': 0.13,
    'model.post_mlp_drop': 0.14,
    'model.layerdrop': 0.15,
    SECTION + 'prenet_dropout': 0.16,
    SECTION + 'prenet_layerdrop': 0.17,
    SECTION + 'decoder.input_dropout': 0.18,
    SECTION + 'ema_local_encoder': False,
    'task.max_sample_size': 176_000,
    'dataset.max_tokens': 400_000,
    'distributed_training.distributed_world_size': 6,
  }

  def change(weights, teacher, cfg):
    for name, value in settings.items():
      setting(name, value)(weights, teacher, cfg)

  imported = fairseq.import_checkpoint(rewrite(change))
  config = imported.config
  dropout = config.model.dropout
  rates = (dropout.attention_output, dropout.attention, dropout.activation, dropout.mlp_output, config.model.layer_drop)
  assert rates == (0.11, 0.12, 0.13, 0.14, 0.15)
  assert (dropout.entry, config.model.prenet_layer_drop, config.decoder.input_dropout) == (0.16, 0.17, 0.18)
  assert config.data.bucket_seconds == (2.0, 4.0, 7.5, 10.0, 11.0)
  assert (config.batch_size, config.data.rows_multiple) == (12, 4)
  assert not any('dropout' in note or 'drop' in note for note in imported.notes)
  assert any('batch' in note for note in imported.notes)
  validate(config)


def set_alibi(values, **flags):
  def change(weights, teacher, cfg):
    for state in (weights, teacher):
      state[AUDIO + 'alibi_scale'] = values
    for name, value in flags.items():
      setting(f'{SECTION}learned_alibi_scale{name}', value)(weights, teacher, cfg)

  return change


def test_alibi_scales(rewrite):
  per_layer = random(BLOCKS, 1, HEADS, 1, 1)
  imported = fairseq.import_checkpoint(rewrite(set_alibi(per_layer, _per_layer=True)))
  for params in (imported.params, imported.teacher):
    np.testing.assert_array_equal(params['encoder']['alibi_scale'], per_layer[:, 0, :, 0, 0])
  assert imported.config.model.alibi_per_layer

  fresh = fairseq.import_checkpoint(rewrite(set_alibi(np.ones((1, HEADS, 1, 1), np.float32))))  # of an early version
  np.testing.assert_array_equal(fresh.params['encoder']['alibi_scale'], np.ones((1, HEADS)))

  constant = fairseq.import_checkpoint(rewrite(set_alibi(np.full((1, 1, HEADS, 1, 1), 0.5, np.float32), **{'': False})))
  assert 'alibi_scale' not in constant.params['encoder'] and 'alibi_scale' not in constant.teacher['encoder']
  assert 'constant' in constant.student_account.unused[AUDIO + 'alibi_scale']
  assert (constant.config.model.alibi_learned, constant.config.model.alibi_scale) == (False, 0.5)

  frozen = fairseq.import_checkpoint(rewrite(set_alibi(random(1, 1, HEADS, 1, 1), **{'': False})))
  np.testing.assert_array_equal(frozen.params['encoder']['alibi_scale'], random(1, HEADS))
  assert frozen.config.model.alibi_learned
  assert any('learned_alibi_scale' in note for note in frozen.notes)


def test_norm_before_the_positions(rewrite):
  def change(weights, teacher, cfg):
    setting(SECTION + 'conv_pos_pre_ln', True)(weights, teacher, cfg)
    for state in (weights, teacher):
      positions = AUDIO + 'relative_positional_encoder.'
      for name in [name for name in state if name.startswith(positions)]:
        state[positions + '1.' + name.removeprefix(positions)] = state.pop(name)
      state[positions + '0.weight'], state[positions + '0.bias'] = random(WIDTH), random(WIDTH) + 1

  imported = fairseq.import_checkpoint(rewrite(change))
  assert imported.config.model.conv_positions.pre_norm
  plain = fairseq.import_checkpoint(rewrite())
  for params, expected in ((imported.params, plain.params), (imported.teacher, plain.teacher)):
    norm = params['encoder']['conv_positions'].pop('norm')
    assert_same(norm, {'scale': random(WIDTH), 'bias': random(WIDTH) + 1})
    assert_same(params, expected)


@pytest.mark.parametrize('layers', [2, 3])
def test_projection_of_several_layers(rewrite, layers):
  hidden = 36
  sizes = [CHANNELS, *(hidden,) * (layers - 1), WIDTH]
  weights_of = [(random(out, inputs), random(out) + i) for i, (inputs, out) in enumerate(itertools.pairwise(sizes))]

  def change(weights, teacher, cfg):
    setting(SECTION + 'decoder.projection_layers', layers)(weights, teacher, cfg)
    setting(SECTION + 'decoder.projection_ratio', 1.5)(weights, teacher, cfg)
    for part in ('weight', 'bias'):
      del weights[f'{AUDIO}decoder.proj.{part}']
    for i, (weight, bias) in enumerate(weights_of):
      weights |= {f'{AUDIO}decoder.proj.{2 * i}.weight': weight, f'{AUDIO}decoder.proj.{2 * i}.bias': bias}

  imported = fairseq.import_checkpoint(rewrite(change))
  decoder = imported.params['decoder']
  names = [*(f'hidden_{i}' for i in range(layers - 1)), 'projection']
  assert {name for name in decoder if not name.startswith('conv_')} == set(names)
  for name, (weight, bias) in zip(names, weights_of, strict=True):
    assert_same(decoder[name], {'kernel': weight.T, 'bias': bias})
  assert (imported.config.decoder.projection_layers, imported.config.decoder.projection_ratio) == (layers, 1.5)


def share_nothing(weights, teacher, cfg):
  setting(SECTION + 'ema_local_encoder', True)(weights, teacher, cfg)
  parts = (AUDIO + 'local_encoder.', AUDIO + 'project_features.')
  teacher |= {name: value + 1 for name, value in weights.items() if name.startswith(parts)}


def test_teacher_with_a_local_encoder_of_its_own(rewrite):
  imported = fairseq.import_checkpoint(rewrite(share_nothing))
  assert imported.config.data2vec2.teacher_scope == 'all'
  expected = jax.tree.map(lambda x: x + 1, imported.params['encoder']['local_encoder'])
  assert_same(imported.teacher['encoder']['local_encoder'], expected, atol=2e-3)


def test_teacher_of_the_blocks_only(rewrite):
  def change(weights, teacher, cfg):
    setting('model.ema_encoder_only', True)(weights, teacher, cfg)
    for name in list(teacher):
      value = teacher.pop(name)
      if name.startswith('blocks.'):
        teacher[name.removeprefix('blocks.')] = value

  imported, whole = fairseq.import_checkpoint(rewrite(change)), fairseq.import_checkpoint(rewrite())
  assert imported.config.data2vec2.teacher_scope == 'blocks'
  blocks = {name: tree for name, tree in whole.teacher['encoder'].items() if name.startswith('block_')}
  assert_same(imported.teacher, {'encoder': blocks})


def half_shared(weights, teacher, cfg):
  share_nothing(weights, teacher, cfg)
  setting(SECTION + 'ema_local_encoder', False)(weights, teacher, cfg)


def more_layers(weights, teacher, cfg):
  setting(SECTION + 'feature_encoder_spec', '[(24, 10, 5)] + [(24, 3, 2)] * 3')(weights, teacher, cfg)


MISFITS = {
  'another front end': (
    setting(SECTION + 'extractor_mode', 'default'),
    ['audio.extractor_mode', "'default'", "'layer_norm'"],
  ),
  'learned ALiBi table': (setting(SECTION + 'learned_alibi', True), ['audio.learned_alibi ', 'True']),
  'heads of ALiBi': (setting(SECTION + 'num_alibi_heads', 2), ['audio.num_alibi_heads', '2', '4']),
  'pre-norm': (setting('model.layer_norm_first', True), ['model.layer_norm_first']),
  'teacher of blocks only': (setting('model.ema_encoder_only', True), ['ema_encoder_only', "'blocks'", "'context'"]),
  'positions in the decoder': (setting(SECTION + 'decoder.add_positions_all', True), ['decoder.add_positions_all']),
  'raw waveforms': (setting('task.normalize', False), ['task.normalize', 'False', 'True']),
  'other layers': (more_layers, ['feature_encoder_spec', '(24, 2)', '(24, 3)']),
  'layers that run code': (
    setting(SECTION + 'feature_encoder_spec', '[(1, 2, 3)] + __import__("os").listdir()'),
    ['feature_encoder_spec', 'is no part of a list of layers'],
  ),
  'layers without a stride': (setting(SECTION + 'feature_encoder_spec', '[(512, 10)]'), ['feature_encoder_spec', 'stride']),
  'another positional kernel': (setting(SECTION + 'conv_pos_width', 95), ['conv_pos_width', '31', '5']),
  'other positional layers': (setting(SECTION + 'conv_pos_depth', 2), ['conv_pos_depth', '2', '3']),
  'other positional groups': (setting(SECTION + 'conv_pos_groups', 8), ['conv_pos_groups', '8', '4']),
  'no norm before positions': (setting(SECTION + 'conv_pos_pre_ln', True), ['conv_pos_pre_ln', 'True', 'False']),
  'ALiBi of one head': (setting(SECTION + 'learned_alibi_scale_per_head', False), ['learned_alibi_scale', '(1, 4)']),
  'ALiBi of no layer': (setting(SECTION + 'learned_alibi_scale_per_layer', True), ['learned_alibi_scale', '(5, 4)']),
  'no ALiBi scale': (drop(AUDIO + 'alibi_scale'), ['learned_alibi_scale']),
  'more projection': (setting(SECTION + 'decoder.projection_layers', 2), ['projection_layers', '2', '1']),
  'another decoder': (setting(SECTION + 'decoder.decoder_kernel', 5), ['decoder_kernel', '5', '7']),
  'missing layer': (drop(AUDIO + 'local_encoder.conv_layers.1.0.weight'), ['conv_layers.1.0.weight']),
  'missing projection': (drop(AUDIO + 'project_features.2.bias'), ['project_features.2.bias']),
  'biased convolution': (add(AUDIO + 'local_encoder.conv_layers.0.0.bias', np.ones(24)), ['conv_layers.0.0.bias']),
  'positions of another shape': (
    add(AUDIO + 'relative_positional_encoder.2.0.weight', np.ones((32, 8, 7))),
    ['relative_positional_encoder.2.0.weight', '[32, 8, 7]', '[32, 8, 5]'],
  ),
  'a teacher with too much': (half_shared, ['local_encoder']),
  'a teacher with too little': (setting(SECTION + 'ema_local_encoder', True), ['local_encoder']),
}


@pytest.mark.parametrize('misfit', MISFITS)
def test_what_does_not_fit_is_refused(rewrite, misfit):
  change, named = MISFITS[misfit]
  path = rewrite(change)
  with pytest.raises(InputError) as error:
    fairseq.import_checkpoint(path)
  assert '\n' not in str(error.value)
  for part in [str(path), *named]:
    assert part in str(error.value)


@pytest.fixture
def fine_tuned(content, tmp_path):
  """Writes a model fine-tuned with CTC, as fairseq does, changed by a function (of the weights, config and task state)."""

  def write(change=lambda weights, cfg, task: None, letters=LETTERS, old=False):
    pretrained = json.loads(json.dumps(content['cfg']))
    weights = {CTC + name: value for name, value in content['model'].items() if name != '_ema' and '.decoder.' not in name}
    weights |= {'w2v_encoder.proj.weight': random(32, WIDTH), 'w2v_encoder.proj.bias': random(32)}
    options = {**pretrained['model'], 'arch': 'data2vec_multi', 'normalize': True}
    cfg = {
      'common': {'seed': 3},
      'model': {
        '_name': 'wav2vec_ctc',
        'w2v_path': '/somewhere',
        'w2v_args': New(Name('argparse Namespace'), (), options) if old else pretrained,
        'apply_mask': True,
        'mask_prob': 0.75,
        'mask_length': 8,
        'mask_channel_prob': 0.3,
        'mask_channel_length': 32,
        'layerdrop': 0.15,
        'activation_dropout': 0.125,
        'attention_dropout': 0.05,
        'dropout': 0.02,
        'final_dropout': 0.01,
        'feature_grad_mult': 0.0,
        'freeze_finetune_updates': 500,
        'zero_mask': True,
        'update_alibi': True,
      },
      'task': {'_name': 'audio_finetuning', 'normalize': True, 'labels': 'ltr'},
      'dataset': {'max_tokens': 3_200_000},
      'distributed_training': {'distributed_world_size': 2},
      'optimization': {'lr': [5e-5], 'max_update': 13_000, 'update_freq': [4], 'clip_norm': 0.0, 'sentence_avg': True},
      'optimizer': {'_name': 'adam', 'adam_betas': '(0.9,0.98)', 'adam_eps': 1e-8, 'weight_decay': 0.0},
      'lr_scheduler': {'_name': 'tri_stage', 'phase_ratio': '[0.2, 0.3, 0.5]', 'init_lr_scale': 0.02, 'final_lr_scale': 0.1},
    }
    symbols = {'symbols': list(letters), 'count': [1] * len(letters), 'indices': {}, 'nspecial': 4}
    task = {'target_dictionary': New(Name('fairseq.data.dictionary Dictionary'), (), symbols)}
    change(weights, cfg, task)
    count = itertools.count()
    pack = lambda state: {
      name: pack(value) if isinstance(value, dict) else tensor(Storage(str(next(count)), np.array(value)))
      for name, value in state.items()
    }
    return write_zip(tmp_path / 'tuned.pt', {'args': None, 'cfg': cfg, 'model': pack(weights), 'task_state': task})

  return write


@pytest.mark.parametrize('old', [False, True])
def test_fine_tuned(fine_tuned, content, old):
  path = fine_tuned(old=old)
  imported = fairseq.import_checkpoint(path)
  assert imported.teacher is None and imported.teacher_account is None
  assert set(imported.params) == {'encoder', 'head'}
  assert_same(imported.params['head'], {'kernel': random(32, WIDTH).T, 'bias': random(32)})
  student = {name: value for name, value in content['model'].items() if name != '_ema'}
  assert_same(imported.params['encoder'], fairseq.student_params(student)['encoder'])
  state = torch_pickle.read(path)['model']
  assert set(imported.student_account.used) == set(state)
  assert_same(fairseq.student_params(state), imported.params)
  config = imported.config
  assert (config.task, config.modality, config.method) == ('ctc', 'audio', '')
  pretrained = fairseq.import_checkpoint(CASE / 'checkpoint.pt').config
  of_training = ('dropout', 'layer_drop', 'prenet_layer_drop')
  for name in set(config.model) - set(of_training):
    assert config.model[name] == pretrained.model[name], name
  rates = config.model.dropout
  assert (rates.entry, rates.attention, rates.attention_output) == (0.02, 0.05, 0.02)
  assert (rates.activation, rates.mlp_output, config.ctc.head_dropout) == (0.125, 0.02, 0.01)
  assert (config.model.layer_drop, config.model.prenet_layer_drop) == (0.15, 0.15)
  assert config.ctc.to_dict() == {
    'freeze_steps': 500,
    'train_front_end': False,
    'time_mask': 0.75,
    'time_mask_length': 8,
    'mask_noise_std': 0.0,
    'channel_mask': 0.3,
    'channel_mask_length': 32,
    'head_dropout': 0.01,
  }
  schedule = config.schedule
  assert (schedule.name, schedule.phases, schedule.initial_scale, schedule.final_scale) == (
    *('tri_stage', (0.2, 0.3, 0.5)),
    *(0.02, 0.1),
  )
  assert (config.learning_rate, config.total_steps, config.seed, config.optimizer.beta2) == (5e-5, 13_000, 3, 0.98)
  # 200 s on each of 2 workers, 4 times: 40 clips of the 40 s of the longest bucket.
  assert (config.batch_size, config.accumulate_steps, config.data.rows_multiple) == (40, 1, 8)
  assert [note for note in imported.notes if re.search('would differ|ignored|letters', note)] == []
  assert fairseq_config.differences(config)[0].startswith('finetune/ctc_')
  validate(config)


@pytest.mark.parametrize('teacher', [CTC + '_ema', '_ema'])
def test_fine_tuned_with_what_pretraining_left(fine_tuned, content, teacher):
  def change(weights, cfg, task):
    weights |= {CTC + name: value for name, value in content['model'].items() if '.decoder.' in name}
    weights[teacher] = content['model']['_ema']
    cfg['model'] |= {'update_alibi': False, 'apply_mask': False, 'zero_mask': False, 'surprise': 1}
    cfg['model']['w2v_args']['model']['modalities']['audio'] |= {'mask_noise_std': 0.25, 'learned_alibi_scale': False}
    task.clear()

  imported = fairseq.import_checkpoint(fine_tuned(change))
  assert set(imported.params) == {'encoder', 'head'} and imported.teacher is None
  unused = imported.student_account.unused
  assert {name for name in unused if '.decoder.' in name} == set(unused)
  assert len(unused) == sum('.decoder.' in name for name in content['model']) > 0
  assert imported.params['encoder']['alibi_scale'].shape == (1, HEADS) and imported.config.model.alibi_learned
  assert (imported.config.ctc.time_mask, imported.config.ctc.channel_mask) == (0.0, 0.0)
  assert imported.config.ctc.mask_noise_std == 0.25
  notes = '\n'.join(imported.notes)
  for part in ('left over', 'model.update_alibi is False', 'model.surprise = 1', 'letters', 'learned_alibi_scale'):
    assert part in notes


def of_model(**values):
  return lambda weights, cfg, task: cfg['model'].update(values)


def of_pretraining(**values):
  return lambda weights, cfg, task: cfg['model']['w2v_args']['model'].update(values)


def fewer_letters(weights, cfg, task):
  weights |= {'w2v_encoder.proj.weight': random(29, WIDTH), 'w2v_encoder.proj.bias': random(29)}
  task.clear()


def another_width(weights, cfg, task):
  weights['w2v_encoder.proj.weight'] = random(32, WIDTH + 1)


def not_tuned(weights, cfg, task):
  for name in list(weights):
    value = weights.pop(name)
    if name.startswith(CTC):
      weights[name.removeprefix(CTC)] = value


CTC_MISFITS = {
  'an attention decoder': (of_model(_name='wav2vec_seq2seq'), ['wav2vec_seq2seq']),
  'another model inside': (of_pretraining(_name='data2vec_audio'), ['model.w2v_args', 'data2vec_audio']),
  'nothing inside': (of_model(w2v_args=None), ['model.w2v_args', 'None']),
  'another network inside': (of_pretraining(layer_norm_first=True), ['model.w2v_args.model.layer_norm_first']),
  'another depth inside': (of_pretraining(depth=2), ['depth', '2', '3']),
  'a favoured blank': (of_model(blank_weight=1.0), ['model.blank_weight', '1.0']),
  'raw waveforms': (lambda w, cfg, t: cfg['task'].update(normalize=False), ['task.normalize']),
  'fewer letters': (fewer_letters, ['w2v_encoder.proj', '29', '32']),
  'a head of another width': (another_width, ['w2v_encoder.proj.weight', '33']),
  'no head': (lambda weights, c, t: weights.pop('w2v_encoder.proj.bias'), ['w2v_encoder.proj.bias']),
  'a renamed tensor': (
    lambda weights, c, t: weights.update({CTC + 'x': weights.pop(CTC + 'blocks.0.norm1.bias')}),
    [CTC + 'x', CTC + 'blocks.0.norm1.bias'],
  ),
  'a config of fine-tuning only': (not_tuned, ['wav2vec_ctc']),
  'a config of pretraining only': (
    lambda w, cfg, t: cfg.update(cfg['model']['w2v_args']),
    ['data2vec_multi'],
  ),
}


@pytest.mark.parametrize('misfit', CTC_MISFITS)
def test_fine_tuned_that_does_not_fit_is_refused(fine_tuned, misfit):
  change, named = CTC_MISFITS[misfit]
  path = fine_tuned(change)
  with pytest.raises(InputError) as error:
    fairseq.import_checkpoint(path)
  assert '\n' not in str(error.value)
  for part in [str(path), *named]:
    assert part in str(error.value)


@pytest.mark.parametrize(
  ('letters', 'named'),
  [
    ([*LETTERS[:5], 'T', 'E', *LETTERS[7:]], ['letter 5', "'T'", "'E'"]),
    (LETTERS[:-1], ['letter 31', 'None', "'Z'"]),
    ([*LETTERS, 'Ä'], ['letter 32', "'Ä'", 'None']),
  ],
)
def test_other_letters_are_refused(fine_tuned, letters, named):
  with pytest.raises(InputError) as error:
    fairseq.import_checkpoint(fine_tuned(letters=letters))
  for part in named:
    assert part in str(error.value)


def test_conversion(fine_tuned, tmp_path, capsys):
  for source in (CASE / 'checkpoint.pt', fine_tuned()):
    imported = fairseq.import_checkpoint(source)
    output = tmp_path / source.stem
    convert.convert(source, output)
    printed = capsys.readouterr().out
    assert f'student: {len(imported.student_account.used)} tensors' in printed
    assert 'relative_positional_encoder.*.*.weight -> encoder/conv_positions/conv_*/kernel' in printed
    params, teacher, config = manager.load_weights(output)
    assert_same(params, imported.params)
    assert_same(teacher, imported.teacher)
    assert to_dict(config) == to_dict(imported.config)
  assert 'w2v_encoder.proj.weight -> head/kernel' in printed
