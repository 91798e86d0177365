"""Pictures of text: real PNG files of a sensible size whose pixels and writing say what they should, where they should."""

import itertools

import numpy as np
import pytest
from PIL import Image

from d2v_jax.report import text_pictures

HIDDEN, RIGHT, WRONG = (211, 216, 222), (218, 251, 225), (255, 235, 233)
TOKENS = ['The', ' cat', ' sat', ' on', ' the', ' unbeliev', 'able', ' mat', '.', '</s>', 'It', ' purred', '.', '</s>'] * 5
# Whatever a byte-level vocabulary may hold: two dollars would be a formula.
ODD = [
  ' $', 'a_{', '$', '\\frac', '\n', '\r\n', '\t', '\x00', '\x1b', '\u200b', '\u0301', '\ufffd', '\ud800', '日本', ' 語',
  '🎉', '👩\u200d🚀', 'العربية', ' naïve', '   ', ' ', '', '=' * 200, '&', '<s>', '<pad>', '\u2028', '\ue000', '%s',
]  # fmt: skip


def read(path):
  image = Image.open(path)
  assert image.format == 'PNG'
  image.load()
  assert 600 <= image.width <= 3000 and 150 <= image.height <= 3000
  assert path.stat().st_size < 2_000_000
  assert [other.name for other in path.parent.iterdir()] == [path.name]  # nothing half written is left
  picture = np.asarray(image.convert('RGB')).astype(int)
  assert (picture < 128).all(axis=-1).mean() > 0.001  # there is ink
  assert near(picture[:, -8:], (255, 255, 255)).all()  # and it does not run out of the picture
  return picture


def near(picture, colour):
  return np.abs(picture - np.array(colour)).max(axis=-1) < 4


def share(picture, colour):
  return near(picture, colour).mean()


@pytest.fixture
def figures(monkeypatch):
  """The figures, kept before they are written."""
  drawn, save = [], text_pictures.save

  def keep(figure, path):
    save(figure, path)
    with Image.open(path) as image:
      figure.set_dpi(image.width / figure.get_figwidth())  # extents as in the file
    drawn.append(figure)

  monkeypatch.setattr(text_pictures, 'save', keep)
  return drawn


def texts(axis):
  """(text, x, y, colour) of all that is written on an axis, from the top left to the bottom right."""
  found = [(text.get_text(), *text.get_position(), text.get_color()) for text in axis.texts]
  return sorted(found, key=lambda text: (text[2], text[1]))


def draw_masked(path, tokens, mask, guesses):
  text_pictures.masked_text(path, [(tokens, mask, guesses)])
  return read(path)


def test_tints_cover_what_is_hidden_right_and_wrong(tmp_path):
  path, count = tmp_path / 'm.png', len(TOKENS)
  nothing = draw_masked(path, TOKENS, [False] * count, TOKENS)
  assert max(share(nothing, colour) for colour in (HIDDEN, RIGHT, WRONG)) < 1e-4  # no guess without a mask
  unguessed = draw_masked(path, TOKENS, [True] * count, [None] * count)
  assert share(unguessed, HIDDEN) > 0.1 and max(share(unguessed, RIGHT), share(unguessed, WRONG)) < 1e-4
  right = draw_masked(path, TOKENS, [True] * count, TOKENS)
  assert share(right, RIGHT) > 0.1 and share(right, WRONG) < 1e-4
  wrong = draw_masked(path, TOKENS, [True] * count, [' dog'] * count)
  assert share(wrong, WRONG) > 0.1 and share(wrong, RIGHT) < 1e-4


def test_the_tint_moves_with_the_mask(tmp_path):
  places = []
  for place in (0, 2, 4):
    mask = np.arange(8) == place
    picture = draw_masked(tmp_path / 'm.png', TOKENS[:8], mask, [' dog'] * 8)
    # More than the few pixels of a letter's edge that happen to have the colour.
    (rows, columns), (guess_rows, guess_columns) = (
      [np.flatnonzero(near(picture, colour).sum(axis=axis) > 5) for axis in (1, 0)] for colour in (HIDDEN, WRONG)
    )
    assert guess_rows[0] > rows[-1]  # below the token
    assert (columns[0], columns[-1]) == (guess_columns[0], guess_columns[-1])
    places.append(columns.mean())
  assert places[0] < places[1] - 40 < places[2] - 80


def test_a_wrong_guess_is_red_and_its_neighbours_stay_green(tmp_path, figures):
  guesses = TOKENS[:8]
  guesses[2] = ' stood'
  draw_masked(tmp_path / 'm.png', TOKENS[:8], [True] * 8, guesses)
  colours = {text: colour for text, _, _, colour in texts(figures[0].axes[0])}
  assert colours['stood'] == text_pictures.RED
  title, summary, *tokens = texts(figures[0].axes[0])
  written = [text for text, _, _, _ in tokens]
  assert written.count('cat') == 2 and written.count('sat') == 1
  assert title[0].endswith('8 of 8 tokens hidden, 7 of 8 guesses right') and '7 of 8' in summary[0]
  greens = [text for text, _, _, colour in tokens if colour == text_pictures.GREEN]
  assert greens == ['The', 'cat', 'on', 'the', 'unbeliev', 'able', 'mat']


@pytest.mark.parametrize(
  ('token', 'guess', 'shown'),
  [
    (' cat', ' dog', 'dog'), (' cat', 'ing', '…ing'), ('able', ' not', '␣not'), (' cat', '.', '.'), ('\n', ' ', '␣'),
    (' ', '\t\n', '⇥⏎'), (' a', '', '□'), ('a', '語', '□'), ('a', '', '□'), (' cat', ' ' + 'x' * 40, 'x' * 17 + '…'),
  ],
)  # fmt: skip
def test_guesses_tell_whether_they_begin_a_word(tmp_path, figures, token, guess, shown):
  draw_masked(tmp_path / 'm.png', TOKENS[:8] + [token], [False] * 8 + [True], [None] * 8 + [guess])
  assert [text for text, _, _, colour in texts(figures[0].axes[0]) if colour == text_pictures.RED] == [shown]


@pytest.mark.parametrize('hides', ('nothing', 'all', 'some'))
def test_running_text_keeps_its_order_and_does_not_overlap(tmp_path, figures, hides):
  rng = np.random.default_rng(0)
  tokens = [(' ' if rng.random() < 0.6 else '') + 'x' * rng.integers(1, 12) for _ in range(80)]
  mask = {'nothing': np.zeros(80, bool), 'all': np.ones(80, bool), 'some': rng.random(80) < 0.5}[hides]
  draw_masked(tmp_path / 'm.png', tokens, mask, [tokens[place] for place in rng.permutation(80)])
  figure = figures[0]
  _, summary, *written = texts(figure.axes[0])
  assert f'{mask.sum()} of 80 tokens hidden' in summary[0] and f'of {mask.sum()} guesses' in summary[0]
  guesses = [text for text in written if text[3] in (text_pictures.RED, text_pictures.GREEN)]
  assert len(guesses) == mask.sum()
  assert [text[0] for text in written if text not in guesses] == [token.strip() for token in tokens]
  boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in figure.axes[0].texts]
  page = figure.bbox
  assert all(box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0 and box.y1 <= page.y1 for box in boxes)
  # Monospace letters fill their columns: those of one word touch.
  overlaps = [min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 2
              for one, other in itertools.combinations(boxes, 2)]  # fmt: skip
  assert not any(overlaps)


def test_lines_break_between_words_where_they_can(tmp_path, figures):
  tokens = ['The'] + [' un', 'believ', 'able'] * 26
  draw_masked(tmp_path / 'm.png', tokens, [False] * 79, [None] * 79)
  lines = {}
  for text, _, y, _ in texts(figures[0].axes[0])[2:]:
    lines.setdefault(y, []).append(text)
  assert len(lines) > 2 and all(line[0] in ('The', 'un') for line in lines.values())
  # A writing without spaces is broken between tokens.
  draw_masked(tmp_path / 'm.png', ['x' * 10] * 40, [False] * 40, [None] * 40)
  assert {x for text, x, y, _ in texts(figures[1].axes[0])[2:]} == {x for text, x, y, _ in texts(figures[1].axes[0])[2:14]}


@pytest.mark.filterwarnings('error')
def test_odd_characters_are_drawn_without_warnings(tmp_path):
  rows = [(ODD, [flag] * len(ODD), ODD[::-1]) for flag in (False, True)]
  text_pictures.masked_text(tmp_path / 'm.png', [*rows, ([], [], [])])
  read(tmp_path / 'm.png')
  sentences = [' '.join(ODD[place:] + [word] + ODD) for place, word in ((0, '語'), (9, 'x'), (20, '$'), (27, '語'))]
  for word in ('語', '$', '\n', 'e('):
    text_pictures.senses(tmp_path / 'm.png', word, sentences, ['日本', '$x$', '\x00', '$x$'], np.eye(4), np.ones((4, 3)))
    read(tmp_path / 'm.png')


def test_a_newline_is_drawn_as_such_and_what_the_font_lacks_as_a_box():
  assert text_pictures._drawable('a\n\tb語\x07é$') == 'a⏎⇥b□□é$'


SENTENCES = ['We sat on the bank.', 'Banks: the Bank of England', 'embankment, then a bank', 'The blank']
GROUPS = ['river', 'money', 'river', 'money']


def draw_senses(path, targets, embeddings=None, word='bank', sentences=SENTENCES, groups=GROUPS):
  embeddings = np.ones((len(targets), 3), np.float32) / 3 if embeddings is None else embeddings
  text_pictures.senses(path, word, sentences, groups, np.asarray(targets, np.float32), embeddings)
  return read(path)


def test_distances_are_ordered_by_sense_and_those_of_equal_embeddings_are_zero(tmp_path, figures):
  angles = np.deg2rad([0, 90, 60, 180])
  targets = 7 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  draw_senses(tmp_path / 's.png', targets)
  page, left, right = figures[0].axes
  # Rows: 0, 60 (river), 90, 180 (money) degrees.
  expected = [[0, 0.5, 1, 2], [0.5, 0, 0.134, 1.5], [1, 0.134, 0, 1], [2, 1.5, 1, 0]]
  for axis, values in ((left, expected), (right, np.zeros((4, 4)))):
    np.testing.assert_allclose(axis.images[0].get_array(), values, atol=1e-3)
    assert axis.images[0].get_clim() == (0, 2)
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axis.texts}
    assert shown == {place: f'{value:.2f}' for place, value in np.ndenumerate(np.round(values, 2))}
  written = [text for text, *_ in texts(page)]
  assert 'mean 0.75 within a sense, 1.16 between senses' in written
  assert 'mean 0.00 within a sense, 0.00 between senses' in written
  assert left.get_position().x1 < right.get_position().x0


def test_sentences_stand_beside_their_row_with_the_word_in_the_colour_of_its_sense(tmp_path, figures):
  draw_senses(tmp_path / 's.png', np.eye(4))
  page, left, _ = figures[0].axes
  height = figures[0].get_figheight()
  places = {text: (y, colour) for text, _, y, colour in texts(page)}
  river, money = places['river'][1], places['money'][1]
  assert river != money
  inches = [height - (left.transData.transform((0, row)) / figures[0].dpi)[1] for row in range(4)]
  for row, text in enumerate(('We sat on the ', 'embankment, then a ', 'Banks: the ', 'The blank')):
    assert places[text][0] == pytest.approx(inches[row], abs=0.01)
  words = [(text, colour) for text, _, _, colour in texts(page) if text.lower() == 'bank']
  assert words == [('bank', river), ('bank', river), ('Bank', money)]  # whole words first
  assert inches[0] < places['river'][0] < inches[1] and inches[2] < places['money'][0] < inches[3]


def test_values_are_left_out_where_there_is_no_room(tmp_path, figures):
  rng = np.random.default_rng(0)
  for count, values in ((12, 144), (13, 0), (40, 0)):
    sentences = ['before ' * 20 + 'a bank' + ' after' * 20] * count
    draw_senses(
      tmp_path / 's.png', rng.normal(size=(count, 8)), None, 'bank', sentences, [f'sense {i % 3}' for i in range(count)]
    )
    assert len(figures[-1].axes[1].texts) == values
    boxes = [text.get_window_extent() for text in figures[-1].axes[0].texts if text.get_text().startswith(' after')]
    assert max(box.x1 for box in boxes) < figures[-1].axes[1].get_window_extent().x0 - 10


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('groups', (['one'], ['one', 'one'], ['one', 'two']))
def test_senses_without_pairs_within_or_between_and_without_a_spread(tmp_path, figures, groups):
  count = len(groups)
  draw_senses(tmp_path / 's.png', np.full((count, 5), 0.1), None, 'bank', SENTENCES[:count], groups)
  page, left, _ = figures[0].axes
  assert not any('nan' in text for text, *_ in texts(page))
  assert left.images[0].get_clim()[1] >= 0.01  # rounding errors are not drawn as distances
  draw_senses(tmp_path / 's.png', np.zeros((count, 5)), None, 'bank', SENTENCES[:count], groups)


def test_pictures_of_senses_differ_where_targets_do(tmp_path):
  one = draw_senses(tmp_path / 's.png', np.eye(4))
  other = draw_senses(tmp_path / 's.png', np.eye(4)[[0, 0, 2, 3]])
  assert one.shape == other.shape and (one != other).any(axis=-1).mean() > 0.005


def test_retrieval_counts_ranks_below_k(tmp_path, figures):
  ranks = np.array([0, 0, 0, 1, 4, 99, 100, 2000])
  text_pictures.retrieval(tmp_path / 'r.png', ranks, {'untrained': np.array([0, 100]), 'shuffled': np.array([7000])})
  read(tmp_path / 'r.png')
  axis = figures[0].axes[0]
  trained, untrained, shuffled = axis.lines
  assert axis.get_xscale() == 'log' and trained.get_xdata()[[0, -1]].tolist() == [1, 100]
  assert trained.get_ydata()[[0, 1, 3, 4, 98, 99]].tolist() == [37.5, 50, 50, 62.5, 62.5, 75]
  assert set(untrained.get_ydata()) == {50} and set(shuffled.get_ydata()) == {0}
  labels = [text.get_text() for text in axis.get_legend().get_texts()]
  assert labels == ['37.5%  trained network', '50.0%  untrained', '0.0%  shuffled']
  assert len({line.get_color() for line in axis.lines}) == 3
  assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > 75


@pytest.mark.filterwarnings('error')
def test_retrieval_of_nothing(tmp_path):
  text_pictures.retrieval(tmp_path / 'r.png', np.array([], int), {})
  read(tmp_path / 'r.png')


def draw_any(name, path, kind):
  if name == 'masked_text':
    text_pictures.masked_text(path, [(TOKENS, [kind] * 70, TOKENS)])
  elif name == 'senses':
    text_pictures.senses(path, 'bank', SENTENCES, GROUPS, np.eye(4) + kind, np.ones((4, 2)))
  else:
    text_pictures.retrieval(path, np.arange(10) * kind, {})


@pytest.mark.parametrize('name', ('masked_text', 'senses', 'retrieval'))
def test_a_failed_write_leaves_the_old_picture(tmp_path, name, monkeypatch):
  path = tmp_path / 'p.png'
  draw_any(name, path, True)
  before = path.read_bytes()

  def fail(*_):
    raise OSError('disk full')

  with monkeypatch.context() as patches:
    patches.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
      draw_any(name, path, False)
  read(path)
  assert path.read_bytes() == before
  draw_any(name, path, False)
  assert path.read_bytes() != before
