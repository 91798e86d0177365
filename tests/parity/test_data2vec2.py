"""data2vec 2.0: forward values, gradients and five train steps against the reference, on every modality."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.checkpoints import fairseq, fairseq_config
from d2v_jax.methods.data2vec2 import Data2vec2, Views
from d2v_jax.modalities.masking import visible
from d2v_jax.train import optimizer as optimizers
from d2v_jax.train.state import TrainState
from d2v_jax.train.step import train_step


def config_of(case, decay_all=False):
  """Our config of a case; its optimiser fields stand under other names than in a checkpoint."""
  flat = fairseq_config.flatten({'model': case.config['model']})
  config, _ = fairseq_config.config_from(flat)
  options = case.config['optimization']
  config.dtype = 'float32'
  config.batch_size = case.config['input']['batch']
  if case.modality == 'audio':
    config.data.update(rows_multiple=1, bucket_seconds=(case.config['input']['samples'] / 16_000,))
  if case.modality == 'text':
    config.data.block_tokens = case.config['input']['tokens']
    config.model.vocab_size = case.config['dictionary']['size']
  config.data2vec2.cls_loss_examples = config.batch_size
  config.total_steps = options['max_update']
  config.learning_rate = options['lr']
  config.schedule.warmup_steps = options['warmup_updates']
  config.optimizer.update(
    beta1=options['betas'][0],
    beta2=options['betas'][1],
    eps=options['eps'],
    eps_uncorrected=True,
    weight_decay=options['weight_decay'],
    clip_norm=float(options['clip_norm']),
    decay_all=decay_all,
  )
  return config


class Prescribed(Data2vec2):
  """The method with the masks of `batch['mask']` [B, M, T] and no noise, as the cases were made."""

  def __init__(self, config, num_visible):
    super().__init__(config)
    self.num_visible = num_visible

  def loss(self, params, teacher_params, batch, keys):
    return self.loss_of_views(params, teacher_params, batch, views_of(self.config, batch['mask'], self.num_visible))


def views_of(config, mask, num_visible):
  """Views with masks [B, M, T] and without noise and dropout."""
  return Views(visible(mask, num_visible), jnp.zeros((*mask.shape, config.model.embed_dim)))


class Run:
  """A case in our terms."""

  def __init__(self, case, decay_all=False):
    self.case = case
    self.config = config_of(case, decay_all)
    self.method = Data2vec2(self.config)
    self.params = fairseq.student_params(case.arrays('params', 'student/'))
    self.teacher = fairseq.teacher_params(case.arrays('params', 'teacher/'))
    inputs = case.arrays('inputs')
    source = inputs['source']
    self.batch = {'valid': np.ones(len(source), bool)}
    if case.modality == 'image':
      self.batch['image'] = source.transpose(0, 2, 3, 1)
    else:
      self.batch[self.method.modality.key] = source
      if 'padding_mask' in inputs:
        self.batch['length'] = (~inputs['padding_mask'].astype(bool)).sum(1).astype(np.int32)
    self.batch = jax.tree.map(jnp.asarray, self.batch)
    self.mask = inputs['mask']
    self.step_masks = inputs.get('traj_mask')

  def views(self, mask):
    """Views with the masks [B * M, T]."""
    mask = np.asarray(mask, bool).reshape(len(self.batch['valid']), -1, mask.shape[-1])
    return views_of(self.config, jnp.asarray(mask), int((~mask[0, 0]).sum()))

  @functools.cached_property
  def forward(self):
    return jax.jit(self.method.forward)(self.params, self.teacher, self.batch, self.views(self.mask))

  @functools.cached_property
  def features(self):
    """What the encoder makes of the unmasked input."""
    modality = self.method.modality
    raw = self.batch[modality.key]
    tokens = self.mask.shape[-1]
    self.padding = modality.padding(self.batch, tokens)
    return self.method.encoder.apply({'params': self.params['encoder']}, modality.prepare(raw), self.padding)

  def loss(self, params):
    views = self.views(self.mask)
    forward = self.method.forward(params, self.teacher, self.batch, views)
    terms = self.method.loss_terms(forward, views.where, self.batch['valid'].astype(jnp.float32))
    return sum(terms.values()) / views.where.mask.sum()


@pytest.fixture(scope='module')
def run(data2vec2_case):
  return Run(data2vec2_case)


def close(ours, theirs, tolerance=1e-5):
  """Largest difference relative to the largest magnitude."""
  theirs = np.asarray(theirs, np.float64)
  difference = np.abs(np.asarray(ours, np.float64) - theirs).max() / max(np.abs(theirs).max(), 1e-12)
  assert difference <= tolerance, f'relative difference {difference:.2e} > {tolerance:.0e}'


def test_features_on_the_unmasked_input(run):
  expected = run.case.arrays('expected')
  features = run.features
  extra = run.config.model.extra_tokens
  close(run.forward.local_features, expected['local_features'])
  close(features.inputs, expected['features/encoder_input'])
  close(features.output, expected['features/x_with_extra'])
  close(features.output[:, extra:], expected['features/x'])
  layers = features.blocks if run.config.data2vec2.block_output_targets else features.mlps
  for i, layer in enumerate(layers):
    close(layer, expected[f'features/layer_results/{i}'])


def test_student(run):
  expected = run.case.arrays('expected')
  extra = run.config.model.extra_tokens
  # The reference keeps visible tokens in no particular order: sort its rows by position.
  order = np.argsort(expected['student/ids_keep'], axis=1)
  sort = lambda x: np.concatenate([x[:, :extra], np.take_along_axis(x[:, extra:], order[..., None], 1)], 1)
  positions = np.asarray(run.views(run.mask).where.positions).reshape(len(order), -1)
  np.testing.assert_array_equal(positions, np.take_along_axis(expected['student/ids_keep'], order, 1))
  close(run.forward.student.inputs, sort(expected['student/encoder_input']))
  close(run.forward.student.output, sort(expected['student/encoder_output']))
  close(run.forward.decoder_input, expected['decoder/0/input'])
  close(run.forward.predictions.reshape(run.forward.decoder_input.shape), expected['decoder/0/pred'])


def test_teacher_and_targets(run):
  expected = run.case.arrays('expected')
  extra = run.config.model.extra_tokens
  close(run.forward.teacher.inputs, expected['teacher/input'])
  layers = run.forward.teacher.blocks if run.config.data2vec2.block_output_targets else run.forward.teacher.mlps
  for i, layer in enumerate(layers):
    close(layer[:, extra:], expected[f'teacher/layer_results/{i}'])
  close(run.forward.targets, expected['teacher/targets'], 2e-5)


def test_losses_and_logged_statistics(run):
  expected = run.case.arrays('expected')
  where = run.views(run.mask).where
  valid = run.batch['valid'].astype(jnp.float32)
  terms = run.method.loss_terms(run.forward, where, valid)
  close(terms['regression'], expected[f'loss/{run.case.modality.upper()}_regression'])
  if 'loss/cls' in expected:
    close(terms['cls'], expected['loss/cls'])
  close(sum(terms.values()), expected['loss/total'])
  metrics = run.method.metrics(run.method.sums(run.forward, where, valid, terms), 1)
  close(metrics['loss'], expected['loss/normalized'])
  close(metrics['target_std'], expected['target_var'])
  close(metrics['pred_std'], expected['pred_var'])


def test_gradients(run):
  expected = jax.tree.leaves_with_path(fairseq.student_params(run.case.arrays('grads')))
  gradients = dict(jax.tree.leaves_with_path(jax.jit(jax.grad(run.loss))(run.params)))
  largest = max(np.abs(leaf).max() for _, leaf in expected)
  assert len(expected) == len(gradients)
  for path, leaf in expected:
    name = jax.tree_util.keystr(path)
    difference = np.abs(np.asarray(gradients[path]) - leaf).max()
    assert difference <= 1e-5 * largest, f'{name}: {difference / largest:.1e} of the largest gradient'
    if "['key']['bias']" not in name:  # its true gradient is 0; what there is is rounding
      close(gradients[path], leaf, 1e-4)


@pytest.mark.parametrize('decay_all', [False, True], ids=['intended', 'verbatim'])
def test_five_steps(data2vec2_case, decay_all):
  """Losses, schedules and weights over five updates, with weight decay as intended and as the reference really has it."""
  run = Run(data2vec2_case, decay_all)
  expected = run.case.arrays('trajectory_verbatim' if decay_all else 'trajectory')
  config = run.config
  as_arrays = lambda tree: jax.tree.map(jnp.array, tree)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=as_arrays(run.params),
    teacher=as_arrays(run.teacher),
    opt_state=optimizers.build(config).init(run.params),
  )
  step = functools.cache(
    lambda num_visible: jax.jit(functools.partial(train_step, Prescribed(config, num_visible), config, config.total_steps))
  )
  for k in range(5):
    mask = run.views(run.step_masks[k]).where.mask
    state, metrics = step(int((~mask[0, 0]).sum()))(state, run.batch | {'mask': mask})
    close(metrics['loss'], expected['loss'][k])
    close(metrics['grad_norm'], expected['grad_norm'][k])
    np.testing.assert_allclose(metrics['learning_rate'], expected['lr'][k], rtol=1e-6, atol=1e-6 * config.learning_rate)
    np.testing.assert_allclose(metrics['ema_decay'], expected['ema_decay'][k], rtol=1e-6)
    for term in [name.removeprefix('terms/') for name in expected if name.startswith('terms/')]:
      close(
        metrics[f'loss_{term.removeprefix(f"{run.case.modality.upper()}_")}'],
        expected[f'terms/{term}'][k] / expected['sample_size'][k],
      )
  take = lambda prefix: {name.removeprefix(prefix): x for name, x in expected.items() if name.startswith(prefix)}
  key_bias_tolerance = 1e-3 if config.optimizer.eps < 1e-6 else 2e-5
  for ours, theirs in (
    (state.params, fairseq.student_params(take('student/'))),
    (state.teacher, fairseq.teacher_params(take('teacher/'))),
  ):
    theirs = dict(jax.tree.leaves_with_path(theirs))
    for path, leaf in jax.tree.leaves_with_path(ours):
      name = jax.tree_util.keystr(path)
      tolerance = key_bias_tolerance if "['key']['bias']" in name else 1e-5
      np.testing.assert_allclose(leaf, theirs[path], rtol=0, atol=tolerance, err_msg=name)
