"""Schedules, teacher decay, position tables and mask statistics against the reference."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.methods import teacher
from d2v_jax.modalities.masking import BlockMask
from d2v_jax.nn import positions
from d2v_jax.train import schedules


def test_cosine_schedule(misc_case):
  for i, options in enumerate(misc_case.config['cosine']):
    expected = misc_case.arrays('expected', f'cosine/{i}/')
    peak, start = options['lr'][0], options['warmup_init_lr']
    ours = schedules.cosine(
      expected['steps'],
      peak,
      options['max_update'],
      options['warmup_updates'],
      options['min_lr'],
      warmup_start=start if start >= 0 else None,
      period=options['lr_period_updates'] if options['lr_period_updates'] > 0 else None,
      shrink=options['lr_shrink'],
    )
    np.testing.assert_allclose(ours, expected['values'], rtol=2e-6, atol=1e-6 * peak)


def test_tri_stage_schedule(misc_case):
  for i, options in enumerate(misc_case.config['tri_stage']):
    expected = misc_case.arrays('expected', f'tri_stage/{i}/')
    phases = [options['warmup_steps'], options['hold_steps'], options['decay_steps']]
    if options['phase_ratio']:
      phases = [int(ratio * options['max_update']) for ratio in options['phase_ratio']]
    scales = options['init_lr_scale'], options['final_lr_scale']
    ours = schedules.tri_stage(expected['steps'], options['lr'][0], *phases, *scales)
    np.testing.assert_allclose(ours, expected['values'], rtol=5e-6)


def test_teacher_decay(misc_case):
  for i, options in enumerate(misc_case.config['ema_anneal']):
    expected = misc_case.arrays('expected', f'ema_anneal/{i}/')
    rate = teacher.ema_rate(expected['steps'], options['start'], options['end'], options['total_steps'])
    np.testing.assert_allclose(rate, 1 - expected['values'], rtol=1e-5, atol=1e-11)


def test_sine_cosine_positions(misc_case):
  tables = misc_case.arrays('expected', 'sincos/')
  for name, table in tables.items():
    dim, grid, cls = (int(part.lstrip('abcdefghijklmnopqrstuvwxyz')) for part in name.split('_'))
    np.testing.assert_allclose(positions.sincos_2d(dim, (grid, grid), bool(cls)), table, atol=1e-6)


def alibi_bias(heads, grid, kind):
  tokens = np.arange(np.prod(grid))
  return -positions.alibi_slopes(heads)[:, None, None] * np.asarray(positions.distances(tokens, grid, kind))


def test_alibi(misc_case):
  for name, expected in misc_case.arrays('expected', 'alibi/').items():
    rank, _, rest = name.partition('/')
    if rank == '1d':
      ours = alibi_bias(len(expected), (expected.shape[-1],), 'manhattan')
    else:
      side = round(expected.shape[-1] ** 0.5)
      ours = alibi_bias(len(expected), (side, side), rest.split('_')[0])
    np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=name)


def sample_masks(options, rank, count):
  side = round(options['L'] ** (1 / rank))
  mask = BlockMask(
    (side,) * rank, options['mask_prob'], options['mask_prob_adjust'], options['mask_length'], options['inverse_mask']
  )
  return np.asarray(jax.jit(mask.sample, static_argnums=1)(jax.random.key(1), count)).reshape(count, *mask.grid)


@pytest.mark.parametrize('rank', [2, 1], ids=['block_2d', 'block_1d'])
def test_block_mask_statistics(misc_case, rank):
  name = f'block_{rank}d'
  settings = json.loads((misc_case.path / 'mask_stats.json').read_text())
  for i, options in enumerate(settings[name]):
    expected = misc_case.arrays('mask_stats', f'{name}/{i}/')
    masks = sample_masks(options, rank, 4 * settings['samples'])
    flat = masks.reshape(len(masks), -1)
    assert (flat.sum(1) == expected['n_masked']).all()
    np.testing.assert_allclose(flat.mean(0), expected['mean_map'].ravel(), atol=0.025)
    np.testing.assert_allclose(flat.mean(0).mean(), expected['mean_map'].mean(), atol=1e-6)
    same = lambda axis, masks=masks: np.mean(np.diff(masks, axis=axis) == 0)
    if rank == 2:
      np.testing.assert_allclose(same(2), expected['p_same_right'], atol=0.01)
      np.testing.assert_allclose(same(1), expected['p_same_down'], atol=0.01)
    else:
      np.testing.assert_allclose(same(1), expected['p_same_next'], atol=0.01)
      runs = flat.sum() / ((np.diff(flat.astype(int), axis=1) == 1).sum() + flat[:, 0].sum())
      np.testing.assert_allclose(runs, expected['mean_run'], atol=0.06)


def test_masks_differ_between_rows_and_keys():
  mask = BlockMask((14, 14), 0.8, 0.07, 3, True)
  one, two = (mask.sample(jax.random.key(key), 64) for key in (1, 2))
  assert len({row.tobytes() for row in np.asarray(jnp.concatenate([one, two]))}) == 128
