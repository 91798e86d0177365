"""Pictures of text, as PNG: what is expected at hidden places, which senses of a word targets tell apart, how often the
right target is found.

Every function writes its file atomically and draws without a display. Matplotlib is imported when the first one is called.
What the font lacks (control characters, Chinese, most emoji) is drawn as □, a newline as ⏎, a tab as ⇥. Lengths are inches.
"""

import functools
import re
from typing import NamedTuple

import numpy as np

from d2v_jax.report.pictures import BLUE, GREEN, GRID, INK, MUTED, RED, new_figure, save

_MONOSPACE = 'DejaVu Sans Mono'  # comes with Matplotlib
_ADVANCE = 0.60205 / 72  # width of a character, per point of its size
# Here characters are 10 and 9 pixels wide at the resolution of `save`: Matplotlib rounds their width to whole pixels, which
# would add up along a line.
_SIZE, _SMALLER = 9.2, 8.28
_COLOURS = (BLUE, '#bc4c00', '#8250df', GREEN, '#bf3989', RED)

_COLUMNS = 120  # characters in a line of running text
_COLUMN, _LINE = _SIZE * _ADVANCE, 0.44
_LONGEST = 18  # characters of a token
_HIDDEN, _RIGHT, _WRONG = '#d3d8de', '#dafbe1', '#ffebe9'
_SPECIALS = ('<s>', '<pad>', '</s>', '<unk>', '<mask>')

_CONTEXT = 30  # characters of a sentence on either side of the word
_VALUES_UP_TO = 12  # occurrences whose distances fit into the cells as numbers


def masked_text(path, rows) -> None:
  """Draws running text: hidden tokens tinted and, below each, what is expected there, green where right and red where wrong.

  A wrong guess that begins a word where the token does not has a ␣ before it, one that goes on with a word where the token
  begins one a ….

  Args:
    path: the PNG file.
    rows: (tokens, mask, guesses) of each text, lists of equal length: readable tokens, str, where a leading space begins a
      word; True for those hidden from the student; the token whose contextual target is nearest to the prediction, str, or
      None for no guess. Guesses at visible tokens are not drawn.
  """
  texts = [_cells(*row) for row in rows]
  wrapped = [_wrap(cells) for cells in texts]
  margin, top, head, gap = 0.25, 0.48, 0.2, 0.14
  axis = _page(2 * margin + _COLUMNS * _COLUMN, top + sum(head + len(lines) * _LINE + gap for lines in wrapped))
  title = 'hidden tokens (grey), and below them what is expected there: '
  _write(axis, margin, 0.22, title + _summary([cell for cells in texts for cell in cells]), size=10)
  y = top
  for cells, lines in zip(texts, wrapped):
    _write(axis, margin, y, _summary(cells), size=8, color=MUTED)
    y += head
    for line in lines:
      x = margin
      for cell in line:
        x += _COLUMN * (cell.apart and cell is not line[0])
        _draw_cell(axis, cell, x, y)
        x += _COLUMN * cell.width
      y += _LINE
    y += gap
  save(axis.figure, path)


def senses(path, word, sentences, groups, targets, embeddings) -> None:
  """Draws how far apart a word's occurrences are: on the left their contextual targets, on the right their input embeddings.

  A distance is 1 - cosine. Occurrences are ordered by sense, senses by their first occurrence; both matrices have one scale.

  Args:
    path: the PNG file.
    word: the word as it is in the sentences, in any case.
    sentences: n strings.
    groups: n strings, the name of the sense in each sentence.
    targets: float [n, D], contextual targets of the word.
    embeddings: float [n, D], input token embeddings of the word.
  """
  names = list(dict.fromkeys(groups))
  members = np.array([names.index(group) for group in groups])
  order = np.argsort(members, kind='stable')
  members = members[order]
  panels = [
    (title, _cosine_distances(np.asarray(vectors, np.float64)[order]))
    for title, vectors in (('contextual targets', targets), ('input embeddings', embeddings))
  ]
  furthest = max(0.01, *(distances.max() for _, distances in panels))  # not the scale of rounding errors
  contexts = [_in_context(sentences[place], word.strip()) for place in order]
  labels = [_shorten(_drawable(name), 14) for name in names]

  column = _SMALLER * _ADVANCE
  cell = np.clip(4.6 / len(order), 0.16, 0.48)
  margin, top = 0.2, 1.0
  label_width = (max(map(len, labels)) + 4) * column
  word_left = margin + label_width + max(len(before) for before, _, _ in contexts) * column
  first_left = word_left + max(len(found + after) for _, found, after in contexts) * column + 0.45
  side = len(order) * cell
  step = max(side, 2.7) + 0.5
  axis = _page(first_left + 2 * step - 0.3, top + side + 0.2)
  title = f'“{_drawable(word.strip())}” in {len(order)} sentences: cosine distances, from 0 (light) to {furthest:.2f} (dark)'
  _write(axis, margin, 0.25, title, size=10)
  for member, label in enumerate(labels):
    rows = np.flatnonzero(members == member)
    middles, colour = top + (rows + 0.5) * cell, _COLOURS[member % len(_COLOURS)]
    axis.plot(2 * [margin], [middles[0] - 0.4 * cell, middles[-1] + 0.4 * cell], color=colour, linewidth=2.5)
    _write(axis, margin + 0.1, middles.mean(), label, size=_SMALLER, color=colour)
    for row, y in zip(rows, middles):
      before, found, after = contexts[row]
      _write(axis, word_left, y, before, size=_SMALLER, family=_MONOSPACE, ha='right')
      _write(axis, word_left, y, found, size=_SMALLER, family=_MONOSPACE, color=colour)
      _write(axis, word_left + len(found) * column, y, after, size=_SMALLER, family=_MONOSPACE)
  for place, (title, distances) in enumerate(panels):
    left = first_left + place * step
    _write(axis, left, top - 0.48, title, size=10)
    _write(axis, left, top - 0.3, _means(distances, members), size=8, color=MUTED)
    width, height = axis.figure.get_size_inches()
    matrix = axis.figure.add_axes((left / width, 0.2 / height, side / width, side / height))
    _draw_distances(matrix, distances, members, furthest)
  save(axis.figure, path)


def retrieval(path, ranks, controls) -> None:
  """Draws how often a masked token's right target is among the k nearest to the prediction, for k = 1 to 100.

  Args:
    path: the PNG file.
    ranks: int [n] for the trained network: how many targets are nearer than the right one.
    controls: the same for each control, by its name.
  """
  nearest = np.arange(1, 101)
  figure = new_figure(7.0, 4.2)
  axis = figure.subplots()
  for place, (name, of_network) in enumerate({'trained network': ranks, **controls}.items()):
    found = np.searchsorted(np.sort(of_network), nearest)  # how many ranks are below k
    shares = 100 * found / max(len(of_network), 1)
    axis.plot(
      nearest, shares, label=f'{shares[0]:.1f}%  {name}', color=_COLOURS[place % len(_COLOURS)],
      linewidth=1.4 if place else 2.2, linestyle='--' if place else '-', marker='o', markevery=[0], markersize=4,
    )  # fmt: skip
  axis.set_xscale('log')
  ticks = (1, 2, 5, 10, 20, 50, 100)
  axis.set_xticks(ticks, map(str, ticks))
  axis.set_xticks([], minor=True)
  axis.set_ylim(bottom=0, top=max(axis.get_ylim()[1], 5))
  axis.yaxis.set_major_formatter('{x:.0f}%')
  axis.set_xlabel('k', fontsize=8, color=MUTED)
  title = f'masked tokens whose right target is among the k nearest to the prediction (of {len(ranks)})'
  axis.set_title(title, fontsize=10, color=INK, loc='left')
  axis.grid(color=GRID, linewidth=0.8)
  axis.set_axisbelow(True)
  axis.spines[:].set_visible(False)
  axis.tick_params(labelsize=8, colors=MUTED, length=0)
  axis.legend(title='the nearest (k = 1)', fontsize=8, title_fontsize=8, frameon=False, labelcolor=INK, alignment='left')
  figure.tight_layout(pad=1.0)
  save(figure, path)


class _Cell(NamedTuple):
  """A token of running text, as drawn."""

  text: str
  guess: str
  hidden: bool
  right: bool
  apart: bool  # from the token before
  width: int  # in columns


def _cells(tokens, mask, guesses):
  cells = []
  for token, hidden, guess, before in zip(tokens, mask, guesses, ['', *tokens]):
    apart = _begins_word(token) or token in _SPECIALS or before in _SPECIALS
    text = _shorten(_visible(token), _LONGEST)
    guessed = '' if guess is None or not hidden else _shorten(_guess_for(token, guess), _LONGEST)
    width = max(len(text), len(guessed)) + 1 if hidden else len(text)
    cells.append(_Cell(text, guessed, bool(hidden), bool(guessed) and guess == token, apart, width))
  return cells


def _begins_word(token):
  return token.startswith(' ') and token.strip(' ') != ''


def _visible(token):
  """A token without the space that begins a word; spaces alone, which one could not see, as ␣."""
  if not token.strip(' '):
    return '␣' * len(token) or '□'
  return _drawable(token.removeprefix(' '))


def _guess_for(token, guess):
  text = _visible(guess)
  if _begins_word(guess) and not _begins_word(token):
    return '␣' + text
  return '…' + text if _begins_word(token) and text[:1].isalnum() and not _begins_word(guess) else text


def _wrap(cells):
  """Breaks cells into lines, between words where that is possible."""
  lines = [[]]
  for cell in cells:
    lines[-1].append(cell)
    if _length(lines[-1]) > _COLUMNS:
      line = lines.pop()
      words = [place for place in range(1, len(line)) if line[place].apart and _length(line[place:]) <= _COLUMNS]
      place = words[-1] if words else len(line) - 1
      lines += [line[:place], line[place:]]
  return lines


def _length(line):
  return sum(cell.width for cell in line) + sum(cell.apart for cell in line[1:])


def _summary(cells):
  hidden, right = sum(cell.hidden for cell in cells), sum(cell.right for cell in cells)
  guesses = sum(cell.guess != '' for cell in cells)
  return f'{hidden} of {len(cells)} tokens hidden, {right} of {guesses} guesses right'


def _draw_cell(axis, cell, x, y):
  """A token with its guess, the upper left corner at x, y."""
  if not cell.hidden:
    _write(axis, x, y + 0.09, cell.text, size=_SIZE, family=_MONOSPACE, color=MUTED if cell.text in _SPECIALS else INK)
    return
  width = cell.width * _COLUMN
  _tint(axis, x, y, width, 0.18, _HIDDEN)
  _write(axis, x + _COLUMN / 2, y + 0.09, cell.text, size=_SIZE, family=_MONOSPACE)
  if cell.guess:
    _tint(axis, x, y + 0.18, width, 0.17, _RIGHT if cell.right else _WRONG)
    _write(
      axis, x + _COLUMN / 2, y + 0.265, cell.guess, size=_SMALLER, family=_MONOSPACE, color=GREEN if cell.right else RED
    )


def _tint(axis, x, y, width, height, colour):
  from matplotlib.patches import Rectangle

  # A little narrower than the cell, so that one can tell neighbours apart.
  axis.add_patch(Rectangle((x + 0.008, y), width - 0.016, height, facecolor=colour, linewidth=0))


def _in_context(sentence, word):
  """What comes before a word, the word as it is written there, and what comes after, cut to the room there is.

  Where the word is not found, the sentence counts as what comes after.
  """
  pattern = re.escape(word)
  found = re.search(rf'\b{pattern}\b', sentence, re.IGNORECASE) or re.search(pattern, sentence, re.IGNORECASE)
  start, end = found.span() if found else (0, 0)
  before, found, after = map(_drawable, (sentence[:start], sentence[start:end], sentence[end:]))
  before = before if len(before) <= _CONTEXT else '…' + before[1 - _CONTEXT :]
  return before, found, _shorten(after, _CONTEXT)


def _cosine_distances(vectors):
  directions = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
  distances = np.maximum(1 - directions @ directions.T, 0)
  np.fill_diagonal(distances, 0)
  return distances


def _means(distances, members):
  same = members[:, None] == members
  pairs = {'within a sense': same & ~np.eye(len(members), dtype=bool), 'between senses': ~same}
  means = [f'{distances[which].mean():.2f} {name}' for name, which in pairs.items() if which.any()]
  return 'mean ' + ', '.join(means) if means else ''


def _draw_distances(axis, distances, members, furthest):
  count = len(members)
  axis.imshow(distances, cmap='Blues', vmin=0, vmax=furthest, interpolation='nearest', aspect='auto')
  for edge in np.flatnonzero(np.diff(members)) + 0.5:
    axis.axhline(edge, color=INK, linewidth=1)
    axis.axvline(edge, color=INK, linewidth=1)
  if count <= _VALUES_UP_TO:
    for (row, column), value in np.ndenumerate(distances):
      colour = 'white' if value > 0.6 * furthest else INK
      axis.text(column, row, f'{value:.2f}', ha='center', va='center', fontsize=7.5, color=colour)
  axis.set_yticks(range(count), range(1, count + 1))
  axis.set_xticks(range(count), range(1, count + 1))
  axis.tick_params(labelsize=7, colors=MUTED, length=0, labeltop=True, labelbottom=False, pad=2)
  axis.spines[:].set_color(GRID)


def _page(width, height):
  """An axis all over a new figure, without anything drawn: x and y are inches from the upper left corner."""
  axis = new_figure(width, height).add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
  axis.axis('off')
  return axis


def _write(axis, x, y, text, size, color=INK, ha='left', family=('DejaVu Sans', _MONOSPACE)):
  """Writes a line of text with its middle at y. A $ is a dollar, not mathematics."""
  axis.text(x, y, text, fontsize=size, color=color, family=family, ha=ha, va='center_baseline', parse_math=False)


def _drawable(text):
  text = text.replace('\n', '⏎').replace('\t', '⇥')
  return ''.join(letter if letter.isprintable() and ord(letter) in _glyphs() else '□' for letter in text)


@functools.cache
def _glyphs():
  from matplotlib import font_manager

  return frozenset(font_manager.get_font(font_manager.findfont(_MONOSPACE)).get_charmap())


def _shorten(text, longest):
  return text if len(text) <= longest else text[: longest - 1] + '…'
