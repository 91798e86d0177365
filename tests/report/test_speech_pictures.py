"""Pictures of speech: real PNG files of a sensible size whose pixels say what they should, where they should."""

import numpy as np
import pytest
from PIL import Image

from d2v_jax.report import pictures, speech_pictures

HIDDEN, VISIBLE, BLANK = (180, 186, 193), (9, 105, 218), (215, 219, 224)
RATE, STRIDE = 16000, 320
LEFT, RIGHT = 0.085, 0.98  # where the axis of time begins and ends, in widths of a picture 10 inches wide


@pytest.fixture
def waves():
  """A tone of 4 s, 2 s of noise, one that is too short for a window."""
  noise = np.random.default_rng(0).normal(size=2 * RATE).astype(np.float32)
  tone = np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE).astype(np.float32)
  return [tone, noise, noise[: STRIDE + 10]]


def frames(waves):
  return [len(wave) // STRIDE for wave in waves]


def read(path):
  image = Image.open(path)
  assert image.format == 'PNG'
  image.load()
  assert 800 <= image.width <= 3000 and 150 <= image.height <= 3000
  assert path.stat().st_size < 2_000_000
  assert [other.name for other in path.parent.iterdir()] == [path.name]  # nothing half written is left
  return np.asarray(image.convert('RGB')).astype(int)


def near(picture, colour):
  return np.abs(picture - np.array(colour)).max(axis=-1) < 12


def runs(flags):
  """(first, last) of each stretch of True."""
  return np.flatnonzero(np.diff(flags, prepend=False, append=False)).reshape(-1, 2) - [0, 1]


def seconds(column, picture, length):
  return (column / picture.shape[1] - LEFT) / (RIGHT - LEFT) * length


def test_each_mask_is_a_strip_that_is_grey_where_it_hides(tmp_path, waves):
  masks = [np.zeros((2, count), bool) for count in frames(waves)]
  masks[0][0, 50:100] = True  # the second second
  masks[0][1] = True
  masks[1][1, 50:] = True
  speech_pictures.waveform_masks(tmp_path / 'w.png', waves, masks)
  picture = read(tmp_path / 'w.png')
  hidden, visible = near(picture, HIDDEN), near(picture, VISIBLE)
  start = round(LEFT * picture.shape[1]) + 3
  rows = [run for run in runs((hidden | visible)[:, start]) if np.ptp(run) > 10]  # other things are not as high
  assert len(rows) == 6  # three utterances by two masks
  hidden, visible = ([strip[first : last + 1].mean(axis=0) > 0.8 for first, last in rows] for strip in (hidden, visible))
  for strip, columns, spans in (
    (0, hidden, [(1, 2)]), (0, visible, [(0, 1), (2, 4)]), (1, hidden, [(0, 4)]), (1, visible, []), (2, visible, [(0, 2)]),
    (3, visible, [(0, 1)]), (3, hidden, [(1, 2)]), (4, visible, [(0, 0.02)]),
  ):  # fmt: skip
    found = [(seconds(first, picture, 4), seconds(last + 1, picture, 4)) for first, last in runs(columns[strip])]
    np.testing.assert_allclose(found, np.reshape(spans, (-1, 2)) if spans else found[:0], atol=0.015)


def test_hidden_shares_of_all_frames_and_beside_each_strip(tmp_path, waves, monkeypatch):
  drawn = []
  monkeypatch.setattr(speech_pictures, 'save', lambda figure, path: drawn.append(figure))
  masks = [np.zeros((2, 300), bool), np.ones((2, 100), bool)]
  masks[0][1] = True
  speech_pictures.waveform_masks(tmp_path / 'w.png', waves[:2], masks)
  (figure,) = drawn
  assert '(62%)' in figure.texts[0].get_text()
  strips = figure.axes[1]
  heights = strips.transData.transform([(0, y) for y in strips.get_yticks()])[:, 1]
  labels = [label.get_text() for label in strips.get_yticklabels()]
  assert [labels[place] for place in np.argsort(-heights)] == ['0%', '100%']


def test_like_frames_get_like_colours_whoever_speaks(tmp_path, waves):
  sounds = [np.where(np.arange(count) < count // 2, -1.0, 1.0)[:, None] * np.eye(16)[0] for count in frames(waves[:2])]
  rng = np.random.default_rng(0)
  features = [sound + 100 * rng.normal(size=16) + 1e-3 * rng.normal(size=sound.shape) for sound in sounds]
  speech_pictures.feature_maps(tmp_path / 'f.png', waves[:2], features)
  picture = read(tmp_path / 'f.png')
  # Red is the component of the sound; green and blue are noise about the middle.
  columns = [int(picture.shape[1] * (LEFT + (RIGHT - LEFT) * second / 4)) for second in (0.5, 1.5, 3.5)]
  coloured = np.ptp(picture, axis=-1) > 20
  rows = runs(coloured.sum(axis=1) > 300)
  assert len(rows) == 2
  (long_early, _, long_late), (short_early, short_late, beyond) = (picture[sum(row) // 2][columns] for row in rows)
  assert abs(long_early[0] - long_late[0]) > 200
  assert abs(long_early[0] - short_early[0]) < 20 and abs(long_late[0] - short_late[0]) < 20
  assert tuple(beyond) == (255, 255, 255)


def test_features_of_the_untrained_are_one_more_strip(tmp_path, waves):
  features = [np.random.default_rng(1).normal(size=(count, 8)) for count in frames(waves[:2])]
  speech_pictures.feature_maps(tmp_path / 'f.png', waves[:2], features)
  one = read(tmp_path / 'f.png')
  speech_pictures.feature_maps(tmp_path / 'f.png', waves[:2], features, untrained=features)
  two = read(tmp_path / 'f.png')
  strips = [len(runs((np.ptp(picture, axis=-1) > 60).sum(axis=1) > 2)) for picture in (one, two)]
  assert strips == [2, 4]


@pytest.mark.filterwarnings('error')
def test_features_without_content_can_be_drawn(tmp_path):
  silence = np.zeros(RATE, np.float32)
  speech_pictures.feature_maps(tmp_path / 'f.png', [silence], [np.full((49, 2), 3, np.float32)], [np.ones((49, 5))])
  picture = read(tmp_path / 'f.png')
  assert near(picture, (255, 255, 255)).mean() > 0.5  # silence is white too
  speech_pictures.waveform_masks(tmp_path / 'f.png', [silence], [np.ones((1, 49), bool)])
  read(tmp_path / 'f.png')


def test_principal_colours_do_not_depend_on_where_features_lie_or_on_outliers():
  features = np.repeat([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]], 50, axis=0)
  features[0, 0] = 1e4
  red = pictures.principal_colours(features + 7)[:, 0]
  assert np.ptp(red[1:50]) < 0.05 and np.ptp(red[50:]) < 0.05 and abs(red[1] - red[50]) > 0.9


@pytest.mark.parametrize('rate', (8000, 16000))
@pytest.mark.parametrize('hertz', (200, 1000, 3000))
def test_spectrogram_is_darkest_at_the_pitch_and_when_it_sounds(hertz, rate):
  wave = np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
  wave[: rate // 2] = 0
  levels = speech_pictures._log_mel(wave, rate)
  assert levels.shape == (100, 64)
  bands = speech_pictures._mel(rate / 2) * np.arange(1, 65) / 65
  assert abs(bands[levels[75].argmax()] - speech_pictures._mel(hertz)) < bands[0]
  assert levels[:49].max() < -90 and levels[52:, :].max(axis=1).min() > 0


def speak(text, symbols, count):
  """Probabilities [count, V]: the letters one after the other, each for one frame, the rest blank."""
  values = np.full((count, len(symbols)), 1e-4)
  values[:, 0] = 1
  for place, letter in enumerate(text):
    frame = int((place + 0.5) * count / len(text))
    values[frame, [0, symbols.index(letter)]] = 0.02, 0.95
  return values


def test_emissions_label_peaks_at_their_time(tmp_path, waves, monkeypatch):
  drawn = []
  monkeypatch.setattr(speech_pictures, 'save', lambda figure, path: drawn.append(figure))
  symbols = ['-', '|', 'A', 'B', '$', 'C']
  values = speak('AB|$A', symbols, 200)
  values[150, 5] = 0.25  # never worth a line
  speech_pictures.emissions(tmp_path / 'e.png', waves[:1], [values], symbols, ['AB $A'], [''])
  spectrogram, lines = drawn[0].axes
  labels = sorted((text.xy[0], text.get_text()) for text in lines.texts)
  assert [name for _, name in labels] == ['A', 'B', '␣', '$', 'A']
  np.testing.assert_allclose([time for time, _ in labels], [0.41, 1.21, 2.01, 2.81, 3.61])
  assert len(lines.lines) == 4
  assert [text.get_text() for text in spectrogram.texts] == ['reference', 'AB $A', 'hypothesis', '(nothing)']


def test_emissions_of_utterances_of_all_lengths(tmp_path, waves):
  symbols = ['<s>', '|', *'ABC']
  values = [speak('AB|C|', symbols, count) for count in frames(waves)]
  # Two dollars would be a formula, and the text is longer than there is room.
  texts = ['$A_{$ ' * 100, 'B', '']
  speech_pictures.emissions(tmp_path / 'e.png', waves, values, symbols, texts, texts)
  picture = read(tmp_path / 'e.png')
  blank = runs(near(picture, BLANK).sum(axis=1) > 300)
  first, second = (near(picture[sum(rows) // 2], BLANK).nonzero()[0].max() for rows in blank)
  assert seconds(first, picture, 4) == pytest.approx(4, abs=0.05)
  assert seconds(second, picture, 4) == pytest.approx(2, abs=0.05)
  assert near(picture[:, -8:], (255, 255, 255)).all()  # nothing runs out of the picture


def test_emissions_are_wide_enough_to_tell_letters_apart_but_no_wider(tmp_path):
  widths = []
  for length in (4, 14, 60):
    wave = np.random.default_rng(0).normal(size=length * RATE).astype(np.float32)
    values = speak('AB' * 7 * length, ['-', 'A', 'B'], len(wave) // STRIDE)
    speech_pictures.emissions(tmp_path / 'e.png', [wave], [values], ['-', 'A', 'B'], ['a'], ['b'])
    widths.append(read(tmp_path / 'e.png').shape[1])
  assert widths[0] < widths[1] < widths[2] <= 3000


def test_a_failed_write_leaves_the_old_picture(tmp_path, waves, monkeypatch):
  path = tmp_path / 'w.png'
  masks = [np.ones((2, count), bool) for count in frames(waves)]
  speech_pictures.waveform_masks(path, waves, masks)
  before = path.read_bytes()

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr('os.replace', fail)
  with pytest.raises(OSError, match='disk full'):
    speech_pictures.waveform_masks(path, waves[:1], masks[:1])
  read(path)
  assert path.read_bytes() == before
