"""`python -m d2v_jax.main --config=configs/NAME.py --workdir=DIR [--config.field=value ...]`: trains, resumes, evaluates."""

from absl import flags

from d2v_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run: created, resumed, or refused if of another config.')


def main() -> None:
  """Trains what the flags say."""
  config, workdir = cli.config_of(_CONFIG), cli.required(_WORKDIR, 'a folder for checkpoints and results')
  # Heavy imports wait until the flags are known to be right.
  from d2v_jax.parallel import processes
  from d2v_jax.train.loop import train_and_evaluate

  processes.initialize()
  train_and_evaluate(config, workdir)


if __name__ == '__main__':
  cli.run(main)
