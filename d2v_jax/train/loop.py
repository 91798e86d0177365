"""The training loop, for every task: it knows states, batches and metrics, and nothing of modalities."""

import contextlib
import math
import time
from pathlib import Path

import jax
import optax
from absl import logging
from clu import parameter_overview

from d2v_jax import config as configs
from d2v_jax.checkpoints import weights
from d2v_jax.checkpoints.manager import CheckpointManager, find_checkpoint
from d2v_jax.data.loader import TrainLoader
from d2v_jax.data.order import Plan, plan_batches
from d2v_jax.data.sources import open_source
from d2v_jax.errors import InputError
from d2v_jax.parallel import mesh as meshes
from d2v_jax.report.progress import Progress, format_scores
from d2v_jax.report.writers import MetricsWriter
from d2v_jax.tasks import TASKS
from d2v_jax.train.health import Health
from d2v_jax.train.interruption import Interrupted, Interruption
from d2v_jax.train.state import TrainState
from d2v_jax.train.step import abstract_state, sharded_init, sharded_step
from d2v_jax.train.workdir import open_workdir


def train_and_evaluate(config, workdir) -> TrainState:
  """Trains what the config says in `workdir`, from where an earlier run in it stopped, and returns the final state.

  Raises:
    InputError: config, data or workdir cannot work.
    RunError: the training diverged, collapsed, or could not be saved.
    SystemExit: after SIGTERM (143) or SIGINT (130), when everything is saved.
  """
  config = weights.with_network(config, workdir)
  configs.validate(config)
  on_record, config = config, weights.with_assets(config, workdir)
  mesh = meshes.build(config)
  source = open_source(config, 'train')
  if len(source) < 1:
    raise InputError(f'config.data.source: {config.data.source} holds no training examples')
  plan = plan_batches(config, source)
  total_steps = resolve_steps(config, plan)
  if total_steps <= (warmup := config.schedule.warmup_steps):
    logging.warning('config.schedule.warmup_steps: %d; this run ends before, after %d steps', warmup, total_steps)
  task = TASKS[config.task](config, source)
  start = starting_weights(task, config, mesh, workdir)  # before the workdir belongs to this config
  workdir = open_workdir(workdir, on_record)
  with contextlib.ExitStack() as stack:
    interruption = stack.enter_context(Interruption().installed())
    manager = CheckpointManager(workdir, on_record, config.checkpoint_keep_every, task.assets)
    stack.enter_context(contextlib.closing(manager))
    state, resumed = initial_state(task.objective, config, mesh, manager, start)
    if int(state.step) >= total_steps and (workdir / 'result.json').exists():
      logging.info('This run is complete: %d steps; its result is in %s', state.step, workdir / 'result.json')
      return state
    run = Run(config, workdir, mesh, task, total_steps, manager, state, resumed)
    stack.callback(run.close)
    try:
      with TrainLoader(config, source, run.step, plan=plan) as loader:
        run.train(loader, interruption)
        unreadable = len(loader.unreadable)
      dropped = {f'data/dropped/{reason}': count for reason, count in getattr(source, 'dropped', {}).items()}
      run.finish({'data/unreadable': unreadable, **dropped})
    except Interrupted as interrupted:
      logging.warning('%s: saving step %d, then leaving', interrupted, run.step)
      run.record()
      run.save(wait=True)
      raise SystemExit(interrupted.code) from None
    return run.state


def resolve_steps(config, plan: Plan) -> int:
  """Updates of the whole run: config.total_steps, or as many as config.total_epochs passes take, rounded up."""
  return config.total_steps or math.ceil(round(config.total_epochs * plan.batches_per_epoch, 6))


def starting_weights(task, config, mesh, workdir) -> tuple | None:
  """(params, teacher) of config.init_from where that is given and the workdir has no checkpoint yet, else None.

  Parts that the file does not have, as the head of a task, are not in them.
  """
  if not config.init_from or find_checkpoint(workdir) is not None:
    return None
  expected = abstract_state(task.objective, config, mesh)
  return weights.matching(config.init_from, expected.params, expected.teacher, labels=task.assets.get('labels'))


def initial_state(objective, config, mesh, manager, start: tuple | None) -> tuple[TrainState, bool]:
  """The newest checkpoint's state, or a fresh one with the weights `start` if given; and whether it was a checkpoint."""
  expected = abstract_state(objective, config, mesh)
  state = manager.restore_latest(expected)
  if state is not None:
    return state, True
  state = sharded_init(objective, config, mesh)
  if start is not None:
    place = lambda found, expected, fresh: (
      fresh
      | {
        part: jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding, expected[part])) for part, tree in found.items()
      }
    )
    params, teacher = start
    state = state.replace(
      params=place(params, expected.params, state.params), teacher=place(teacher, expected.teacher, state.teacher)
    )
  return state, False


class Run:
  """A run in progress: the state and everything that looks at it."""

  def __init__(self, config, workdir: Path, mesh, task, total_steps: int, manager, state: TrainState, resumed: bool):
    self.config = config
    self.workdir = workdir
    self.mesh = mesh
    self.task = task
    self.total_steps = total_steps
    self.manager = manager
    self.state = state
    self.step = int(state.step)
    self.saved_step = self.step if resumed else None
    self.pending = None  # (step, metrics) of the last record, still on the device
    self.evaluated_step = None
    self.health = Health(config, self.step, self.step - int(optax.tree.get(state.opt_state, 'count')))
    self.writer = MetricsWriter(workdir, resume_step=self.step if resumed else None)
    self.progress = Progress(total_steps, self.step)
    self.step_function = sharded_step(task.objective, config, total_steps, mesh)
    self.programs = {}  # shapes of a batch -> the compiled step and its model FLOPs
    if resumed:
      logging.info('Resuming %s at step %d of %d', workdir, self.step, total_steps)
    else:
      parameter_overview.log_parameter_overview(state.params, include_stats=False)
      logging.info('Starting %s: %d steps on %d devices', workdir, total_steps, mesh.size)

  def train(self, loader, interruption: Interruption) -> None:
    """Takes the steps that remain. Between two steps the state is saved and evaluated where it is time to."""
    config = self.config
    batches = iter(loader)
    previous = ()
    while self.step < self.total_steps:
      if self.step and self.step % config.checkpoint_every == 0:
        with interruption.shielded():
          self.record()  # before the save: what is in a checkpoint is on record
          self.save()
      if config.eval_every and self.step and self.step % config.eval_every == 0:
        self.evaluate()
      started = time.monotonic()
      batch = meshes.global_batch(self.mesh, next(batches))
      waited = time.monotonic() - started
      step_function, flops = self.program(batch)
      with interruption.shielded():
        self.state, metrics = step_function(self.state, batch)
        self.step += 1
        # While this step runs the host waits for the one before: it never gets further ahead, and its clock stays true.
        jax.block_until_ready(previous)
        previous = metrics['loss']
        self.record()
        self.progress.step(len(batch['valid']), flops, waited)
        if self.step % config.log_every == 0 or self.step == self.total_steps:
          self.pending = self.step, metrics
    with interruption.shielded():
      self.record()
      self.save(wait=True)

  def program(self, batch) -> tuple:
    """The step compiled for batches of this one's shapes, and its model FLOPs. The time of compiling is no training time."""
    shapes = tuple(value.shape for value in batch.values())
    if shapes not in self.programs:
      key = self.task.objective.modality.key
      with self.progress.pause():
        compiled = self.step_function.lower(self.state, batch).compile()
      flops = sum(self.task.objective.flops_per_example(batch[key].shape[1:]).values())
      self.programs[shapes] = compiled, flops * len(batch[key])
      logging.info('Compiled the step for batches of %s', ' x '.join(map(str, batch[key].shape)))
    return self.programs[shapes]

  def finish(self, extra: dict) -> None:
    """Evaluates the final state, draws the report and writes result.json."""
    if self.config.eval_every:
      self.evaluate()
    if self.config.pictures:
      self.task.report(self.whole_state(), self.workdir)
    self.writer.result({'steps': self.total_steps, **extra})
    logging.info('Done: %s', self.workdir / 'result.json')

  def record(self) -> None:
    """Writes and checks the metrics that are pending."""
    if self.pending is None:
      return
    step, metrics = self.pending
    self.pending = None
    metrics = {f'train/{name}': float(value) for name, value in jax.device_get(metrics).items()}
    shown = ('train/loss', 'train/learning_rate', 'train/grad_norm')
    logging.info(self.progress.line(step, {name: metrics[name] for name in shown}))
    self.writer.write(step, metrics | self.progress.rates())
    self.health.check(step, metrics)

  def save(self, wait: bool = False) -> None:
    """Saves the state, unless it is saved already."""
    jax.block_until_ready(self.state)  # the rest of a step is no pause
    with self.progress.pause():
      if self.saved_step != self.step:
        self.manager.save(self.state)
        self.saved_step = self.step
      if wait:
        self.manager.wait()

  def evaluate(self) -> None:
    """Scores the state; the pictures of the moment go with it."""
    self.record()
    if self.evaluated_step == self.step:
      return
    jax.block_until_ready(self.state)
    with self.progress.pause():
      metrics = self.task.evaluate(self.whole_state(), self.workdir)
      self.writer.write(self.step, metrics)
      self.evaluated_step = self.step
      logging.info('Evaluation at step %d:\n%s', self.step, format_scores(metrics))
      if self.config.pictures and self.step < self.total_steps:
        self.task.report(self.whole_state(), self.workdir)

  def whole_state(self) -> TrainState:
    """The state with parameters and teacher whole on every device: a task looks at what comes of them on every process."""
    if self.mesh.shape['fsdp'] == 1:
      return self.state
    gather = jax.jit(lambda trees: trees, out_shardings=meshes.replicated(self.mesh))
    params, teacher = gather((self.state.params, self.state.teacher))
    return self.state.replace(params=params, teacher=teacher)

  def close(self) -> None:
    """Closes what is open, whatever happened."""
    self.writer.close()
