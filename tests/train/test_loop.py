"""Real runs: interrupted at any moment, resumed, and equal to one that was left alone."""

import os
import shutil
import signal
import textwrap
import types

import jax
import numpy as np
import pytest

from d2v_jax.checkpoints import fairseq, manager
from d2v_jax.checkpoints.manager import CheckpointManager
from d2v_jax.data.order import Bucket, Plan
from d2v_jax.methods.ctc import Ctc
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.parallel import mesh as meshes
from d2v_jax.train import loop
from d2v_jax.train.step import abstract_state
from tests.train import tiny

RELEASED = tiny.ROOT / 'tests' / 'golden' / 'd2v2_image' / 'checkpoint.pt'
STEPS = 6
TRAIN_NAMES = {
  *('train/loss', 'train/learning_rate', 'train/ema_decay', 'train/grad_norm', 'train/target_std', 'train/pred_std'),
  *('train/loss_regression', 'train/loss_cls', 'train/mse', 'train/target_content', 'train/skipped_updates'),
  *('train/spread/front_end', 'train/spread/block_00', 'train/spread/block_01'),
}
# `python SCRIPT --config=... --workdir=...` is the main command with something that happens at a chosen moment.
SCRIPT = """
import os, signal, sys
from d2v_jax import cli, main
from d2v_jax.checkpoints.manager import CheckpointManager
from d2v_jax.data.loader import TrainLoader
from d2v_jax.train import loop

def send(number):
  os.kill(os.getpid(), number)

"""


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  return tiny.make_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def whole(images, tmp_path_factory):
  """The workdir of a run of six steps that nobody disturbed."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  done = tiny.train(images, workdir)
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.fixture
def copy(whole, tmp_path):
  """A copy of it."""
  return shutil.copytree(whole, tmp_path / 'copy')


def run_with(happening, tmp_path, images, workdir, *overrides, **options):
  """Runs the main command after the Python lines `happening`."""
  script = tmp_path / 'script.py'
  script.write_text(SCRIPT + textwrap.dedent(happening) + "\nif __name__ == '__main__':\n  cli.run(main.main)\n")
  return tiny.run(script, *tiny.train_arguments(images, workdir, *overrides), **options)


def final_state(workdir):
  """The newest state, by name, as bytes."""
  config = tiny.get_config()
  expected = abstract_state(Data2vec2(config), config, meshes.build(config, jax.devices()[:1]))
  checkpoints = CheckpointManager(workdir, config)
  state = checkpoints.restore_latest(expected)
  checkpoints.close()
  return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(state)}


def saved_steps(workdir):
  return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())


def assert_equal_runs(workdir, whole):
  """Same weights, teacher and optimiser to the last bit; same metrics, each step once."""
  assert final_state(workdir) == final_state(whole)
  assert tiny.metrics(workdir) == tiny.metrics(whole)
  assert [row['step'] for row in tiny.metrics(workdir)] == list(range(1, STEPS + 1))


# --- what a run leaves


def test_metrics_have_the_names_of_the_contract(whole):
  rows = tiny.metrics(whole, timings=True)
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  for row in rows:
    assert row.keys() - set(tiny.TIMINGS) == TRAIN_NAMES | {'step'}  # and nothing of eval: eval_every is 0
  assert {'train/examples_per_second', 'train/steps_per_second', 'train/data_wait'} <= rows[-1].keys()
  assert rows[0]['train/learning_rate'] == 0
  np.testing.assert_allclose([row['train/ema_decay'] for row in rows], 0.9 + 0.009 * np.arange(1, 7), rtol=1e-6)
  result = tiny.json.loads((whole / 'result.json').read_text())
  assert result.keys() - set(tiny.TIMINGS) == TRAIN_NAMES | {'step', 'steps', 'data/unreadable'}
  assert result['steps'] == STEPS and result['data/unreadable'] == 0
  assert result['train/loss'] == rows[-1]['train/loss']
  assert saved_steps(whole) == [4, 6]
  assert not (whole / 'report').exists()


@pytest.mark.slow
def test_evaluation_and_pictures(images, tmp_path, whole):
  """With eval_every: scores at those steps and at the end, in both files; the training is the same.

  The evaluate command finds the same scores for the final weights.
  """
  done = tiny.train(images, tmp_path / 'run', '--config.eval_every=4', '--config.pictures=True')
  assert done.returncode == 0, done.stderr
  rows = {row['step']: row for row in tiny.metrics(tmp_path / 'run')}
  names = {f'eval/{score}/{kind}' for score in ('knn', 'linear_probe') for kind in ('accuracy', 'pixels', 'untrained')}
  names |= {'eval/train_examples', 'eval/test_examples', 'eval/unreadable'}
  for step, row in rows.items():
    assert {name for name in row if name.startswith('eval/')} == (names if step in (4, 6) else set()), step
  result = tiny.json.loads((tmp_path / 'run' / 'result.json').read_text())
  for name in names:
    assert result[name] == rows[6][name]
    assert 0 <= result[name] <= 16
  for kind in ('pixels', 'untrained'):  # the controls do not change with training
    assert rows[4][f'eval/knn/{kind}'] == rows[6][f'eval/knn/{kind}']
  found = {path.name for path in (tmp_path / 'run' / 'report').iterdir()}
  assert found == {'masks.png', 'feature_maps.png', 'neighbours.png', 'curves.png'}
  train_only = [{name: row[name] for name in row if not name.startswith('eval/')} for row in tiny.metrics(tmp_path / 'run')]
  assert train_only == tiny.metrics(whole)

  done = tiny.run('evaluate', *tiny.train_arguments(images, tmp_path / 'run', '--config.pictures=False'))
  assert done.returncode == 0, done.stderr
  scores = tiny.json.loads(done.stdout.splitlines()[-1])
  assert scores == tiny.json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
  assert scores == pytest.approx({name: result[name] for name in names})


def test_epochs_and_batches_that_run_on(images, tmp_path):
  """1.5 passes over 16 images in batches of 8 are three steps."""
  done = tiny.train(images, tmp_path / 'run', '--config.total_steps=0', '--config.total_epochs=1.5')
  assert done.returncode == 0, done.stderr
  assert [row['step'] for row in tiny.metrics(tmp_path / 'run')] == [1, 2, 3]


def test_steps_of_a_run():
  plan = Plan(1, [Bucket(np.arange(20), 8), Bucket(np.arange(9), 6)])  # 4 batches an epoch
  config = tiny.get_config()
  assert loop.resolve_steps(config, plan) == config.total_steps == 6
  config.total_steps = 0
  for epochs, steps in ((1.0, 4), (2.5, 10), (0.1, 1), (3.001, 13)):
    config.total_epochs = epochs
    assert loop.resolve_steps(config, plan) == steps
  config.total_epochs = 0.1
  assert loop.resolve_steps(config, Plan(1, [Bucket(np.arange(30), 1)])) == 3  # not 4: 0.1 * 30 is above 3 in float64


# --- killed


@pytest.mark.parametrize('wait', [True, False], ids=['right after a save', 'during a save'])
def test_killed_run_resumes_to_the_same_bits(images, tmp_path, whole, wait):
  happening = f"""
    save = CheckpointManager.save

    def save_and_die(self, state, wait=False):
      save(self, state, wait={wait})
      if int(state.step) == 4:
        send(signal.SIGKILL)

    CheckpointManager.save = save_and_die
  """
  workdir = tmp_path / 'run'
  died = run_with(happening, tmp_path, images, workdir)
  assert died.returncode == -signal.SIGKILL
  assert saved_steps(workdir) == [2, 4] if wait else saved_steps(workdir) in ([2], [2, 4])
  assert not (workdir / 'result.json').exists()
  done = tiny.train(images, workdir)
  assert done.returncode == 0, done.stderr
  assert f'Resuming {workdir} at step {4 if wait else ""}' in done.stderr
  assert_equal_runs(workdir, whole)
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['4', '6']  # no leftovers


# --- signals


WAITING = """
  following = TrainLoader.__next__
  seen = []

  def wait_for_batch(self):
    seen.append(1)
    if len(seen) == 4:
      send(signal.{})
    return following(self)

  TrainLoader.__next__ = wait_for_batch
"""
STEPPING = """
  compiled = loop.Run.program

  def program(self, batch):
    step, flops = compiled(self, batch)

    def interrupted(state, batch):
      if int(state.step) == 3:
        send(signal.{})
      return step(state, batch)

    return interrupted, flops

  loop.Run.program = program
"""


@pytest.mark.parametrize(
  ('happening', 'name', 'code', 'step'),
  [(WAITING, 'SIGTERM', 143, 3), (STEPPING, 'SIGINT', 130, 4)],
  ids=['SIGTERM while waiting for data', 'SIGINT during a step'],
)
def test_interrupted_run_saves_and_resumes_to_the_same_bits(images, tmp_path, whole, happening, name, code, step):
  workdir = tmp_path / 'run'
  stopped = run_with(happening.format(name), tmp_path, images, workdir)
  assert stopped.returncode == code, stopped.stderr
  assert 'Traceback' not in stopped.stderr
  assert f'{name}: saving step {step}' in stopped.stderr
  assert saved_steps(workdir) == [2, step]
  # Whatever was trained is on record, so that nothing is missing after a resume.
  assert [row['step'] for row in tiny.metrics(workdir)] == list(range(1, step + 1))
  done = tiny.train(images, workdir)
  assert done.returncode == 0, done.stderr
  assert f'at step {step} of 6' in done.stderr
  assert_equal_runs(workdir, whole)


def test_signal_from_outside_with_data_workers(images, tmp_path):
  workdir = tmp_path / 'run'
  overrides = ('--config.total_steps=1000000', '--config.data.workers=1', '--config.log_every=5')
  with tiny.killed_at_the_end(tiny.start('main', *tiny.train_arguments(images, workdir, *overrides))) as process:
    records = workdir / 'metrics.jsonl'
    tiny.wait_for(lambda: records.exists() and len(records.read_text().splitlines()) > 3, process)
    process.send_signal(signal.SIGTERM)
    done = tiny.finish(process)
  assert done.returncode == 143, done.stderr
  assert 'Traceback' not in done.stderr
  step = saved_steps(workdir)[-1]
  assert f'SIGTERM: saving step {step}' in done.stderr
  assert [row['step'] for row in tiny.metrics(workdir)] == list(range(5, step + 1, 5))


def test_signal_during_the_last_evaluation(images, copy):
  """The training is done and saved; the next start evaluates."""
  (copy / 'result.json').unlink()
  happening = """
    from d2v_jax.evaluate.features import FeatureEvaluator
    FeatureEvaluator.run = lambda self, params: send(signal.SIGTERM)
  """
  evaluating = ('--config.eval_every=6', '--config.eval.controls=False')
  stopped = run_with(happening, copy.parent, images, copy, *evaluating)
  assert stopped.returncode == 143, stopped.stderr
  assert 'Traceback' not in stopped.stderr and not (copy / 'result.json').exists()
  done = tiny.train(images, copy, *evaluating)
  assert done.returncode == 0, done.stderr
  result = tiny.json.loads((copy / 'result.json').read_text())
  assert result['step'] == STEPS and {'eval/knn/accuracy', 'eval/linear_probe/accuracy', 'train/loss'} <= result.keys()
  assert [row['step'] for row in tiny.metrics(copy)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(('name', 'code'), [('SIGTERM', 143), ('SIGINT', 130)])
def test_signal_while_the_run_starts(images, tmp_path, name, code):
  """Restoring and initialising take a while too: the exit code is the signal's, and there is no traceback."""
  happening = f"""
    start = loop.initial_state

    def initial_state(*arguments):
      send(signal.{name})
      return start(*arguments)

    loop.initial_state = initial_state
  """
  stopped = run_with(happening, tmp_path, images, tmp_path / 'run')
  # Dying of the signal is fine as well: to a shell it is the same exit code.
  assert stopped.returncode in (code, -signal.Signals[name]), stopped.stderr
  assert 'Traceback' not in stopped.stderr


# --- again


def contents(workdir):
  return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


def test_finished_run_says_so_and_changes_nothing(images, copy):
  before = contents(copy)
  done = tiny.train(images, copy)
  assert done.returncode == 0, done.stderr
  assert 'complete' in done.stderr and str(copy / 'result.json') in done.stderr
  assert contents(copy) == before


def test_finished_training_without_a_result_is_evaluated_again(images, copy):
  """As when it was killed during the last evaluation."""
  result = tiny.json.loads((copy / 'result.json').read_text())
  (copy / 'result.json').unlink()
  done = tiny.train(images, copy)
  assert done.returncode == 0, done.stderr
  found = tiny.json.loads((copy / 'result.json').read_text())
  for name in TRAIN_NAMES | {'steps'}:
    assert found[name] == result[name]


def test_free_fields_may_change_when_a_run_resumes(images, copy, whole):
  shutil.rmtree(copy / 'checkpoints' / '6')
  (copy / 'result.json').unlink()
  free = ('checkpoint_every=1', 'remat=True', 'data.prefetch=3', 'health.max_skipped=9')
  done = tiny.train(images, copy, *(f'--config.{field}' for field in free))
  assert done.returncode == 0, done.stderr
  assert saved_steps(copy) == [5, 6]
  for found, expected in zip(tiny.metrics(copy), tiny.metrics(whole), strict=True):
    assert found['train/loss'] == pytest.approx(expected['train/loss'], rel=1e-5)


def test_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(images, copy, whole):
  path = max((copy / 'checkpoints' / '6' / 'params').rglob('*'), key=lambda path: path.stat().st_size * path.is_file())
  os.truncate(path, path.stat().st_size // 2)
  done = tiny.train(images, copy)
  assert done.returncode == 0, done.stderr
  assert f'Checkpoint {copy / "checkpoints" / "6"} is damaged' in done.stderr
  assert 'at step 4 of 6' in done.stderr
  assert_equal_runs(copy, whole)
  assert sorted(path.name for path in (copy / 'checkpoints').iterdir()) == ['4', '6', 'damaged-6']


@pytest.mark.slow
def test_run_moves_from_eight_devices_to_two_to_one(images, tmp_path, whole):
  """Stopped at steps 2 and 4; losses are those of one device."""
  workdir = tmp_path / 'run'
  for stop, devices, fsdp in ((2, 8, 4), (4, 2, 1), (None, 1, 1)):
    happening = f"""
      save = CheckpointManager.save

      def save_and_stop(self, state, wait=False):
        save(self, state, wait=True)
        if int(state.step) == {stop}:
          send(signal.SIGTERM)

      CheckpointManager.save = save_and_stop
    """
    done = run_with(happening, tmp_path, images, workdir, f'--config.mesh.fsdp={fsdp}', devices=devices)
    assert done.returncode == (143 if stop else 0), done.stderr
    assert f'{devices} devices' in done.stderr or stop != 2
  rows, expected = tiny.metrics(workdir), tiny.metrics(whole)
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  for row, other in zip(rows, expected):
    for name in ('train/loss', 'train/grad_norm', 'train/target_std'):
      assert row[name] == pytest.approx(other[name], rel=1e-4), name


# --- init_from


def test_what_the_weights_of_another_task_do_not_have_starts_anew(tmp_path):
  pretraining, config = tiny.speech_config(), tiny.speech_config('ctc')
  params = tiny.random_params(Data2vec2(pretraining), 0)
  manager.save_weights(tmp_path / 'pretrained', params, None, pretraining)
  config.init_from = str(tmp_path / 'pretrained')
  objective, mesh = Ctc(config), meshes.build(config, jax.devices()[:1])
  task = types.SimpleNamespace(objective=objective, assets={})
  start = loop.starting_weights(task, config, mesh, tmp_path / 'run')
  checkpoints = CheckpointManager(tmp_path / 'run', config)
  state, resumed = loop.initial_state(objective, config, mesh, checkpoints, start)
  assert not resumed and state.params.keys() == {'encoder', 'head'} and state.teacher == {}
  jax.tree.map(np.testing.assert_array_equal, state.params['encoder'], params['encoder'])
  fresh = objective.init(jax.random.key(config.seed))['head']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params['head'], fresh)
  # A run that has a checkpoint goes on from that.
  checkpoints.save(state.replace(step=state.step + 1), wait=True)
  assert loop.starting_weights(task, config, mesh, tmp_path / 'run') is None
  resumed_state, resumed = loop.initial_state(objective, config, mesh, checkpoints, None)
  checkpoints.close()
  assert resumed and int(resumed_state.step) == 1


def first_step(images, workdir, *arguments):
  """One step at a learning rate of 0: the student that a run begins with is the one it ends with."""
  overrides = (f'--config.data.source=folder:{images}', '--config.total_steps=1')
  done = tiny.run('main', *arguments, f'--workdir={workdir}', *overrides)
  assert done.returncode == 0, done.stderr
  return manager.load_weights(workdir)


def test_init_from_another_run(images, tmp_path, whole):
  config = tiny.ROOT / 'tests' / 'train' / 'tiny.py'
  params, teacher, _ = first_step(images, tmp_path / 'run', f'--config={config}', f'--config.init_from={whole}')
  expected, expected_teacher, _ = manager.load_weights(whole)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  rate = 1 - 0.909
  moved = jax.tree.map(lambda old, new: old + rate * (new - old), expected_teacher, {'encoder': expected['encoder']})
  jax.tree.map(lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-6), teacher, moved)


def test_init_from_a_released_file(images, tmp_path):
  config = tmp_path / 'config.py'
  config.write_text(
    'from d2v_jax.checkpoints import fairseq\n'
    'def get_config():\n'
    f'  config = fairseq.import_checkpoint({str(RELEASED)!r}).config\n'
    f'  config.init_from = {str(RELEASED)!r}\n'
    "  config.update(batch_size=8, dtype='float32', log_every=1, pictures=False)\n"
    '  config.data.workers = 0\n'
    '  return config\n'
  )
  params, _, _ = first_step(images, tmp_path / 'run', f'--config={config}')
  jax.tree.map(np.testing.assert_array_equal, params, fairseq.import_checkpoint(RELEASED).params)
