"""`python -m d2v_jax.sweep --config=FILE --workdir=DIR --seeds=1,2,3 [--learning_rates=1e-5,2e-5]`: one config, many times.

Trains the config once for every seed and learning rate, one after the other, each in a folder of its own below DIR, and
prints all values of `--metric` with their medians; DIR/sweep.json holds them. Run again it goes on where it stopped.
"""

import json
import statistics
from pathlib import Path

from absl import flags, logging

from d2v_jax import cli
from d2v_jax.errors import InputError


def sweep(config, workdir: str, seeds: list[int], learning_rates: list[float], metric: str) -> dict:
  """Trains every combination; see the module's docstring.

  Returns:
    What sweep.json holds: 'metric'; 'runs', each with its seed, learning rate, 'final' value and the 'highest' and 'lowest'
    of all its evaluations; 'medians': learning rate -> median of the final values over the seeds. On other processes than
    the first an empty dict.

  Raises:
    InputError: as training does, or no evaluation has the metric.
  """
  import jax

  from d2v_jax.report.writers import read_metrics, write_atomically
  from d2v_jax.train.loop import train_and_evaluate

  if not config.eval_every:
    raise InputError('config.eval_every: 0, so nothing would be measured; give the steps between evaluations')
  runs = []
  for rate in learning_rates:
    for seed in seeds:
      folder = Path(workdir) / f'learning_rate_{rate:g}_seed_{seed}'
      logging.info('Run %d of %d: %s', len(runs) + 1, len(seeds) * len(learning_rates), folder)
      own = config.copy_and_resolve_references()
      own.update(seed=seed, learning_rate=rate)
      train_and_evaluate(own, folder)
      if jax.process_index():
        continue  # the first process writes the records, and so reads them
      values = [record[metric] for record in read_metrics(folder) if metric in record]
      if not values:
        raise InputError(f'--metric: no evaluation has {metric}; {folder / "result.json"} has those there are')
      runs.append({'learning_rate': rate, 'seed': seed, 'final': values[-1], 'highest': max(values), 'lowest': min(values)})
  if jax.process_index():
    return {}
  finals = {rate: [run['final'] for run in runs if run['learning_rate'] == rate] for rate in learning_rates}
  result = {'metric': metric, 'runs': runs, 'medians': {f'{rate:g}': statistics.median(finals[rate]) for rate in finals}}
  write_atomically(Path(workdir) / 'sweep.json', (json.dumps(result, indent=2) + '\n').encode())
  return result


def _numbers(text, kind, flag):
  try:
    return list(dict.fromkeys(kind(part) for part in text.split(',')))
  except ValueError:
    raise InputError(f'--{flag}: found {text!r}; numbers with commas between them are needed') from None


def main() -> None:
  """The command; see the module's docstring."""
  config, workdir = cli.config_of(_CONFIG), cli.required(_WORKDIR, 'a folder for all runs')
  from d2v_jax.parallel import processes

  rates = flags.FLAGS.learning_rates
  rates = _numbers(rates, float, 'learning_rates') if rates else [config.learning_rate]
  seeds = _numbers(flags.FLAGS.seeds, int, 'seeds')
  processes.initialize()
  result = sweep(config, workdir, seeds, rates, flags.FLAGS.metric)
  if not result:
    return
  print(f'{result["metric"]} after the last step, seeds {", ".join(map(str, seeds))}')
  for rate in rates:
    values = ' '.join(f'{run["final"]:.4f}' for run in result['runs'] if run['learning_rate'] == rate)
    print(f'  learning rate {rate:g}: median {result["medians"][f"{rate:g}"]:.4f} of {values}')
  print(json.dumps(result))


if __name__ == '__main__':
  _CONFIG = cli.define_config()
  _WORKDIR = flags.DEFINE_string('workdir', None, 'The folder that the runs get folders in.')
  flags.DEFINE_string('seeds', '1,2,3', 'Values of config.seed.')
  flags.DEFINE_string('learning_rates', '', 'Values of config.learning_rate; empty: that of the config.')
  flags.DEFINE_string('metric', 'eval/score', 'What is collected, as result.json names it.')
  cli.run(main)
