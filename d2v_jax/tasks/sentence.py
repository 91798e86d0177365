"""Fine-tuning on tables of texts, single or in pairs: classification and regression, judged by GLUE's metrics."""

import functools
from pathlib import Path

import jax
import numpy as np

from d2v_jax.data.loader import eval_batches
from d2v_jax.data.sentences import open_tests, open_unlabelled
from d2v_jax.data.sources import open_source
from d2v_jax.errors import InputError
from d2v_jax.evaluate.sentence_metrics import combined, scores
from d2v_jax.methods.sentence import SentencePrediction
from d2v_jax.report import pictures
from d2v_jax.report.progress import reported
from d2v_jax.report.writers import read_metrics, write_atomically
from d2v_jax.train.state import TrainState


class Sentences:
  """The task: `objective` is what the train step optimises; `evaluate` and `report` are for the loop."""

  def __init__(self, config, train_source):
    """Builds the objective; with config.eval_every also opens the evaluation data, so that what is missing shows at once."""
    self._config = config
    self._labels = train_source.classes
    self.assets = {'tokenizer': train_source.tokenizer.to_text(), 'labels': list(self._labels)}
    self.objective = self.objective_of(config, len(self._labels) or 1)
    if config.sentence.metric in ('f1', 'accuracy_f1') and len(self._labels) != 2:
      raise InputError(
        f'config.sentence.metric: {config.sentence.metric!r} is of two classes, {config.data.source} has'
        f" {len(self._labels)}; use 'accuracy' or 'matthews'"
      )
    self._tests, self._unlabelled = {}, None
    if config.eval_every:
      if config.data.holdout:
        self._tests = {'holdout': open_source(config, 'test')}
      else:
        self._tests = open_tests(config, train_source.tokenizer)
      self._unlabelled = open_unlabelled(config, train_source.tokenizer)
      if self._unlabelled is not None and (name := Path(config.data.predict_file).stem) in self._tests:
        raise InputError(
          f'config.data.predict_file: {config.data.predict_file!r} and a table with labels would both be written to'
          f' predictions_{name}.tsv; rename one'
        )

  @staticmethod
  def objective_of(config, outputs: int = 2):
    """What the train step optimises, without data."""
    return SentencePrediction(config, outputs)

  def evaluate(self, state: TrainState, workdir: Path) -> dict[str, float]:
    """The metrics of the first test table, `eval/accuracy` and the like, and of others under `eval/NAME/`.

    `eval/score` is config.sentence.metric of the first. Predictions for each table go to `predictions_NAME.tsv` in the
    workdir: the texts' lines, what was predicted, and the label where there is one.
    """
    found = {}
    for number, (name, source) in enumerate(self._tests.items()):
      indices, predictions = self._predict(state.params, source)
      labels = np.array([source.read(index)['label'] for index in indices])
      result = scores(self._config.sentence.kind, predictions, labels, len(self._labels))
      result['score'] = combined(self._config.sentence.metric, result)
      prefix = 'eval/' if not number else f'eval/{name}/'
      found |= {prefix + metric: value for metric, value in result.items()}
      self._write(workdir, name, source, indices, predictions, labels)
    if self._unlabelled is not None:
      name = Path(self._config.data.predict_file).stem
      self._write(workdir, name, self._unlabelled, *self._predict(state.params, self._unlabelled))
    return found

  def report(self, state: TrainState, workdir: Path) -> None:
    """Draws the curves of the run."""
    del state
    folder = Path(workdir) / 'report'
    folder.mkdir(exist_ok=True)
    pictures.curves(folder / 'curves.png', read_metrics(workdir))

  def _predict(self, params, source):
    """Indices and predictions, class numbers or numbers, in the order of the table."""
    indices = np.arange(len(source))
    if self._config.eval.max_test:
      indices = np.unique(np.linspace(0, len(source) - 1, self._config.eval.max_test).astype(int))
    rows = self._config.eval.batch_size
    found = {}
    batches = eval_batches(self._config, source, indices, rows)
    for batch in reported(batches, -(-len(indices) // rows), 'evaluation, batches'):
      outputs = np.asarray(self._forward(params, {name: batch[name] for name in ('tokens', 'length')}))
      values = outputs[:, 0] if self._config.sentence.kind == 'regression' else outputs.argmax(1)
      found |= dict(zip(batch['index'][batch['valid']].tolist(), values[batch['valid']]))
    indices = sorted(found)
    return indices, np.array([found[index] for index in indices])

  def _write(self, workdir, name, source, indices, predictions, labels=None):
    if jax.process_index():
      return
    regression = self._config.sentence.kind == 'regression'
    show = (lambda value: f'{value:.6g}') if regression else lambda value: self._labels[int(value)]
    lines = ['line\tprediction' + ('' if labels is None else '\tlabel')]
    for row, index in enumerate(indices):
      cells = [source.name(index).rpartition(':')[2], show(predictions[row])]
      lines.append('\t'.join(cells if labels is None else [*cells, show(labels[row])]))
    write_atomically(Path(workdir) / f'predictions_{name}.tsv', ('\n'.join(lines) + '\n').encode())

  @functools.partial(jax.jit, static_argnums=0)
  def _forward(self, params, batch):
    return self.objective.scores(params, batch)
