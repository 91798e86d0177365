"""Fine-tuning for speech recognition, judged by word and character error rates."""

import functools
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from d2v_jax.data import letters
from d2v_jax.data.loader import eval_batches
from d2v_jax.data.sources import open_source
from d2v_jax.evaluate.ctc_decoding import beam_search, greedy
from d2v_jax.evaluate.error_rates import error_rate, write_hypotheses
from d2v_jax.evaluate.language_model import NGram
from d2v_jax.methods.ctc import Ctc
from d2v_jax.report import pictures, speech_pictures
from d2v_jax.report.progress import reported
from d2v_jax.report.writers import read_metrics
from d2v_jax.train.state import TrainState

# Utterances on the picture of the report.
_SHOWN = 4


class Transcription:
  """The task: `objective` is what the train step optimises; `evaluate` and `report` are for the loop."""

  assets: ClassVar[dict] = {}  # letters are always the same

  def __init__(self, config, train_source):
    """Builds the objective; with config.eval_every also opens the evaluation data, so that what is missing shows at once."""
    self._config = config
    self.objective = self.objective_of(config)
    self._test_source = open_source(config, 'test') if config.eval_every else None
    language_model = config.eval.language_model
    self._language_model = NGram.read(language_model) if language_model else None
    self._shown = self._test_source or train_source

  @staticmethod
  def objective_of(config):
    """What the train step optimises, without data."""
    return Ctc(config)

  def evaluate(self, state: TrainState, workdir: Path) -> dict[str, float]:
    """Corpus word and character error rates by greedy decoding: `eval/wer`, `eval/cer`; and by beam search, if asked for.

    Every utterance's hypothesis goes to `hypotheses.tsv` in the workdir (`hypotheses_beam.tsv` by beam search).
    """
    source = self._test_source
    count = min(self._config.eval.max_test or len(source), len(source))
    indices = np.linspace(0, len(source) - 1, count).astype(int)
    decoders = {'': lambda log_probs: letters.decode(greedy(log_probs))}
    if self._config.eval.beam_width:
      decoders['_beam'] = self._beam_search
    hypotheses = {name: {} for name in decoders}
    for index, log_probs in self._log_probs(state.params, source, indices):
      for name, decode in decoders.items():
        hypotheses[name][index] = decode(log_probs)
    found = sorted(hypotheses[''])
    references = [letters.normalise(source.texts[index]) for index in found]
    scores = {'eval/utterances': len(found), 'eval/unreadable': len(indices) - len(found)}
    scores |= {f'eval/dropped/{reason}': count for reason, count in source.dropped.items()}
    for name in decoders:
      texts = [hypotheses[name][index] for index in found]
      if found:
        scores[f'eval/wer{name}'] = error_rate([text.split() for text in references], [text.split() for text in texts])
        scores[f'eval/cer{name}'] = error_rate(references, texts)
      if jax.process_index() == 0:
        rows = zip([source.name(index) for index in found], references, texts)
        write_hypotheses(Path(workdir) / f'hypotheses{name}.tsv', rows)
    return scores

  def report(self, state: TrainState, workdir: Path) -> None:
    """Draws `report/*.png`: what the network hears in some utterances, and the curves of the run."""
    folder = Path(workdir) / 'report'
    folder.mkdir(exist_ok=True)
    source = self._shown
    indices = np.linspace(0, len(source) - 1, min(_SHOWN, len(source))).astype(int)
    found = dict(self._log_probs(state.params, source, indices))
    if found:
      speech_pictures.emissions(
        folder / 'emissions.png',
        [source.read(index)['audio'] for index in found],
        [np.exp(log_probs) for log_probs in found.values()],
        letters.VOCABULARY,
        [letters.normalise(source.texts[index]) for index in found],
        [letters.decode(greedy(log_probs)) for log_probs in found.values()],
      )
    pictures.curves(folder / 'curves.png', read_metrics(workdir))

  def _beam_search(self, log_probs):
    options = self._config.eval
    found = beam_search(
      log_probs, options.beam_width, self._language_model, options.language_model_weight, options.word_score
    )
    return found[0][0]

  def _log_probs(self, params, source, indices):
    """Yields (index, log-probabilities float32 [frames, V]) of the utterances that can be read, in any order."""
    rows = self._config.eval.batch_size
    batches = eval_batches(self._config, source, indices, rows)
    for batch in reported(batches, max(len(indices) // rows, 1), 'evaluation, batches'):
      inputs = {name: batch[name] for name in ('audio', 'length')}
      log_probs = np.asarray(self._forward(params, inputs))
      padding = np.asarray(self.objective.modality.padding(inputs, log_probs.shape[1]))
      for row in np.flatnonzero(batch['valid']):
        yield int(batch['index'][row]), log_probs[row, ~padding[row]]

  @functools.partial(jax.jit, static_argnums=0)
  def _forward(self, params, batch):
    return self.objective.log_probs(params, batch)
