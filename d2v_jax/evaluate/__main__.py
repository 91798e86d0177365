"""`python -m d2v_jax.evaluate --config=configs/NAME.py --workdir=DIR [--checkpoint=PATH]`: evaluates without training.

Scores the newest checkpoint of the workdir, or the weights at PATH (a checkpoint of ours, or a `.pt` file of the reference).
Prints the scores as one JSON object on the last line, and writes them to `evaluation.json` in the workdir.
"""

import json
from pathlib import Path

from absl import flags

from d2v_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run; scores and pictures go there.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Weights to evaluate; default: the newest checkpoint of the workdir.')


def main() -> None:
  """Evaluates what the flags say."""
  config, workdir = cli.config_of(_CONFIG), Path(cli.required(_WORKDIR, 'the folder of a run'))
  from d2v_jax import config as configs
  from d2v_jax.checkpoints import weights
  from d2v_jax.data.sources import open_source
  from d2v_jax.parallel import mesh, processes
  from d2v_jax.report.progress import format_scores
  from d2v_jax.report.writers import write_atomically
  from d2v_jax.tasks import TASKS
  from d2v_jax.train.step import abstract_state
  from d2v_jax.train.workdir import make_folder

  processes.initialize()
  config = weights.with_network(config, workdir, _CHECKPOINT.value)
  config = weights.with_assets(config, workdir, _CHECKPOINT.value)
  config.eval_every = config.eval_every or 1  # whoever calls this command wants an evaluation
  configs.validate(config)
  task = TASKS[config.task](config, open_source(config, 'train'))
  expected = abstract_state(task.objective, config, mesh.build(config))
  params, teacher = weights.matching(_CHECKPOINT.value or workdir, expected.params, expected.teacher, complete=True)
  state = expected.replace(params=params, teacher=teacher)
  make_folder(workdir)
  scores = task.evaluate(state, workdir)
  text = json.dumps(scores)
  write_atomically(workdir / 'evaluation.json', f'{text}\n'.encode())
  if config.pictures:
    task.report(state, workdir)
  print(format_scores(scores))
  print(text)


if __name__ == '__main__':
  cli.run(main)
