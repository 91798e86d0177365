"""From the frames of a CTC recogniser to text: greedily, or by prefix beam search with a word language model."""

import functools
import math

import numpy as np

from d2v_jax.data.letters import BLANK, BOUNDARY, SPECIAL, VOCABULARY

_LEAST_LIKELY = 1e-4  # of the likeliest id of the frame: below it, a letter does not extend prefixes in this frame


def greedy(log_probs, length: int | None = None) -> np.ndarray:
  """Ids int32 [n] of the best alignment: the likeliest id of each frame, repeats collapsed, blanks dropped.

  Args:
    log_probs: [T, V] of each frame. <pad>, </s> and <unk> are never chosen.
    length: number of valid frames; None: all.

  Raises:
    ValueError: another shape, a length beyond the frames, or valid frames with NaN.
  """
  if length is not None and not 0 <= length <= len(log_probs):
    raise ValueError(f'length: {length}, of {len(log_probs)} frames')
  ids = _checked(log_probs[:length]).argmax(axis=1).astype(np.int32)
  changes = np.diff(ids, prepend=BLANK) != 0
  return ids[changes & (ids != BLANK)]


def beam_search(
  log_probs, width: int, language_model=None, lm_weight: float = 0.0, word_score: float = 0.0
) -> list[tuple[str, float]]:
  """Searches for the likeliest texts, where a text is as likely as all its alignments together.

  The score of a text is its log-probability under the frames + lm_weight * its log-probability under the language model
  + word_score * its number of words. Any letters may form a word. Of runs of word boundaries, and of those at the ends, one
  counts and none: they do not change the text.

  After each frame the `width` best beginnings are kept; the language model joins in when a boundary completes a word. In a
  frame, only letters at least 1e-4 times as likely as the likeliest id extend them, so with a sure blank none does.

  Args:
    log_probs: [T, V] of the valid frames. <pad>, </s> and <unk> are never chosen.
    width: beginnings kept.
    language_model: has `score(words_before, word)`, as `language_model.NGram` has.
    lm_weight: of the language model; at 0 it is not asked.
    word_score: added for each word; negative: fewer, longer words.

  Returns:
    At most `width` (text, score), best first; equal scores in alphabetical order.

  Raises:
    ValueError: another shape, frames with NaN, or a width below 1.
  """
  if width < 1:
    raise ValueError(f'width: {width}, must be at least 1')
  log_probs = _checked(log_probs)
  likely = log_probs[:, BOUNDARY:] >= log_probs.max(axis=1, keepdims=True) + math.log(_LEAST_LIKELY)

  def language_score(words_before, word):
    if language_model is None or not lm_weight:
      return 0.0
    return lm_weight * language_model.score(('<s>', *words_before), word)

  @functools.cache
  def last_word_score(text):
    """What a boundary after the text adds to its score: it completes the last word, if there is one."""
    *words_before, word = text.split('|')
    return word_score + language_score(words_before, word) if word else 0.0

  # A beginning is its letters and boundaries as a string, such as 'THE|CA'. The empty one counts as ending in a boundary:
  # a boundary then changes neither.
  texts, last = [''], np.array([BOUNDARY])
  blank, letter = np.array([0.0]), np.array([-np.inf])  # log mass of the alignments that end in blank, in the last letter
  bonus = np.zeros(1)  # score of the completed words
  for frame, likely_in_frame in zip(log_probs, likely):
    ids = np.flatnonzero(likely_in_frame) + BOUNDARY
    total = np.logaddexp(blank, letter)
    ends_word = last == BOUNDARY
    stays_blank = total + frame[BLANK]
    stays_letter = np.where(ends_word, total, letter) + frame[last]
    if not ids.size:
      blank, letter = stays_blank, stays_letter
      continue

    # Each beginning (rows) with one more letter (columns). The same letter again needs a blank between.
    repeated = ids == last[:, None]
    grown = np.where(repeated, np.where(ends_word, -np.inf, blank)[:, None], total[:, None]) + frame[ids]
    # What grows into a beginning that is kept already adds to it.
    row_of = {text: row for row, text in enumerate(texts)}
    column_of = {id_: column for column, id_ in enumerate(ids.tolist())}
    merges = [
      (row, row_of[text[:-1]], column_of[id_])
      for row, (text, id_) in enumerate(zip(texts, last.tolist()))
      if text and text[:-1] in row_of and id_ in column_of
    ]
    if merges:
      into, row, column = np.array(merges).T
      stays_letter[into] = np.logaddexp(stays_letter[into], grown[row, column])
      grown[row, column] = -np.inf
    grown_bonus = np.repeat(bonus[:, None], len(ids), axis=1)
    if ids[0] == BOUNDARY:
      grown_bonus[:, 0] += [last_word_score(text) for text in texts]

    scores = np.concatenate([np.logaddexp(stays_blank, stays_letter) + bonus, (grown + grown_bonus).ravel()])
    best = np.argsort(-scores, kind='stable')[:width]
    best = best[scores[best] > -np.inf]
    kept = len(texts)
    texts = [
      texts[place] if place < kept else texts[(place - kept) // len(ids)] + VOCABULARY[ids[(place - kept) % len(ids)]]
      for place in best.tolist()
    ]
    last = np.concatenate([last, np.tile(ids, kept)])[best]
    blank = np.concatenate([stays_blank, np.full(grown.size, -np.inf)])[best]
    letter = np.concatenate([stays_letter, grown.ravel()])[best]
    bonus = np.concatenate([bonus, grown_bonus.ravel()])[best]

  masses, bonuses = {}, {}  # by text: with and without a boundary at the end are the same
  for text, mass, score in zip(texts, np.logaddexp(blank, letter).tolist(), bonus.tolist()):
    words = text.rstrip('|').replace('|', ' ')
    masses[words] = np.logaddexp(masses.get(words, -np.inf), mass)
    bonuses[words] = score + last_word_score(text)
  results = [(text, float(mass + bonuses[text] + language_score(text.split(), '</s>'))) for text, mass in masses.items()]
  return sorted(results, key=lambda result: (-result[1], result[0]))


def _checked(log_probs):
  """As float64 [T, V], with the ids that no transcript has made impossible."""
  log_probs = np.array(log_probs, np.float64)
  if log_probs.ndim != 2 or log_probs.shape[1] != len(VOCABULARY):
    raise ValueError(f'log_probs: shape {log_probs.shape}, must be [frames, {len(VOCABULARY)}]')
  log_probs[:, SPECIAL] = -np.inf
  if not np.isfinite(log_probs.max(axis=1, initial=-np.inf)).all():
    raise ValueError('log_probs: NaN, or a frame in which no letter is possible')
  return log_probs
