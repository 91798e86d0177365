"""Pictures of speech, as PNG: what is masked, what the features of the frames tell apart, what a recogniser hears when.

Every function writes its file atomically and draws without a display. Matplotlib is imported when the first one is called.
All utterances of a panel have the same scale of time, so that a second is as wide everywhere. Frame t of an utterance starts
at sample 320 t.
"""

import numpy as np

from d2v_jax.report.pictures import BLUE, GREEN, GRID, INK, MUTED, RED, new_figure, principal_colours, save

_STRIDE = 320  # samples from frame to frame
_HIDDEN, _BLANK = '#b4bac1', '#d7dbe0'
_SYMBOL_COLOURS = (BLUE, RED, GREEN, '#8250df', '#bc4c00', '#bf3989')
_SHOWN_ABOVE = 0.3  # probability that makes a symbol worth a line
_BANDS = 64  # mel bands of a spectrogram
_DECIBELS, _SILENCE = 60, -100  # what lies further below the loudest is white, and so is this level in any case


def waveform_masks(path, waves, masks, sample_rate: int = 16_000) -> None:
  """Draws every waveform, and below it one strip for each of its masks: hidden frames grey, visible ones blue.

  Args:
    path: the PNG file.
    waves: list of float [n_i].
    masks: list of bool [M, T_i], True = hidden from the student.
    sample_rate: samples per second.
  """
  views = len(masks[0])
  hidden = np.mean(np.concatenate(masks, axis=1))
  hides = 'the mask hides' if views == 1 else f'each of {views} masks hides'
  title = f'waveform, and which frames {hides}: grey is hidden ({100 * hidden:.0f}%), blue is visible'
  figure, panel = _panel(title, waves, sample_rate, [0.75, 0.15 * views])
  for (wave_axis, mask_axis), wave, mask in zip(panel, waves, masks):
    _draw_wave(wave_axis, np.asarray(wave), sample_rate)
    colours = np.where(np.asarray(mask)[..., None], _rgb(_HIDDEN), _rgb(BLUE))
    _draw_frames(mask_axis, colours, sample_rate)
    for edge in range(1, views):
      mask_axis.axhline(edge, color='white', linewidth=1.5)
    mask_axis.set_yticks(np.arange(views) + 0.5, [f'{100 * share:.0f}%' for share in np.mean(mask, axis=1)])
  save(figure, path)


def feature_maps(path, waves, features, untrained=None, sample_rate: int = 16_000) -> None:
  """Draws the features of frames as colours below the spectrogram: frames of like colour have like features.

  The three leading principal components over all frames of the panel become red, green and blue; before that the mean over
  its frames is taken off each utterance, since features tell first of all who speaks into which microphone.

  Args:
    path: the PNG file.
    waves: list of float [n_i].
    features: list of float [T_i, D] of the trained network.
    untrained: the same of the untrained network: one more strip.
    sample_rate: samples per second.
  """
  strips = {'trained': features} if untrained is None else {'trained': features, 'untrained': untrained}
  title = 'features of the frames less their mean over the utterance, principal components as red, green, blue'
  figure, panel = _panel(title, waves, sample_rate, [0.9] + [0.3] * len(strips))
  for (axis, *_), wave in zip(panel, waves):
    _draw_spectrogram(axis, wave, sample_rate)
  for place, (name, of_utterances) in enumerate(strips.items(), 1):
    centred = [np.asarray(frames, np.float64) - np.mean(frames, axis=0, dtype=np.float64) for frames in of_utterances]
    colours = principal_colours(np.concatenate(centred))
    ends = np.cumsum([len(frames) for frames in centred])
    for axes, of_utterance in zip(panel, np.split(colours, ends[:-1])):
      _draw_frames(axes[place], of_utterance[None], sample_rate)
      axes[place].set_yticks([0.5], [name])
  save(figure, path)


def emissions(path, waves, probabilities, symbols, references, hypotheses, sample_rate: int = 16_000) -> None:
  """Draws what a CTC recogniser takes each moment for: the probabilities of its symbols below the spectrogram.

  Symbols that never exceed 0.3 in an utterance are left out; each peak of the others carries its symbol, a boundary between
  words (| or space) a grey ␣. Letters stay apart at screen size in utterances of up to about 15 seconds.

  Args:
    path: the PNG file.
    waves: list of float [n_i].
    probabilities: list of float [T_i, V] in [0, 1].
    symbols: V strings; the first one is CTC's blank.
    references: what is said, one string per utterance.
    hypotheses: what the recogniser makes of it, one string per utterance.
    sample_rate: samples per second.
  """
  # As wide as it takes to tell 15 letters a second apart, up to what a viewer still shows at a glance.
  width = np.clip(1.15 * max(map(len, waves)) / sample_rate, 10, 22)
  title = 'probabilities of the symbols over time; the blank is grey'
  figure, panel = _panel(title, waves, sample_rate, [0.7, 1.1], width, head=0.4)
  for (axis, lines), wave, values, *texts in zip(panel, waves, probabilities, references, hypotheses):
    _draw_spectrogram(axis, wave, sample_rate)
    _draw_probabilities(lines, np.asarray(values), symbols, sample_rate)
    for height, name, text in zip((0.24, 0.08), ('reference', 'hypothesis'), texts):
      _write(axis, name, height, x=-0.08, ha='right', fontsize=8, color=MUTED)
      text, colour = (_shorten(text, axis), INK) if text else ('(nothing)', MUTED)
      _write(axis, text, height, fontsize=8, color=colour, family='monospace')
  save(figure, path)


def _panel(title, waves, sample_rate, heights, width=10.0, head=0.0):
  """A new figure and its axes [utterance][strip]: strips of these heights over one axis of time, `head` above each group.

  All lengths are inches.
  """
  left, right, top, gap, foot = 0.85, 0.2, 0.4, 0.05, 0.38
  seconds = max(map(len, waves)) / sample_rate
  height = top + len(waves) * (head + sum(heights) + gap * (len(heights) - 1) + foot)
  figure = new_figure(width, height)
  figure.text(left / width, 1 - 0.3 / height, title, fontsize=10, color=INK)
  upper, panel = height - top, []
  for _ in waves:
    upper -= head
    axes = []
    for strip in heights:
      axis = figure.add_axes((left / width, (upper - strip) / height, 1 - (left + right) / width, strip / height))
      axis.set_xlim(0, seconds)
      axis.tick_params(labelsize=8, colors=MUTED, length=0, labelbottom=False)
      axis.spines[:].set_visible(False)
      axes.append(axis)
      upper -= strip + gap
    axes[-1].tick_params(labelbottom=True)
    upper -= foot - gap
    panel.append(axes)
  panel[-1][-1].set_xlabel('seconds', fontsize=8, color=MUTED, labelpad=2)
  return figure, panel


def _write(axis, text, above, x=0.0, **options):
  """Writes over an axis, so many inches above and right of its upper left corner. A $ is a dollar, not mathematics."""
  offset = (72 * x, 72 * above)
  axis.annotate(text, (0, 1), offset, xycoords='axes fraction', textcoords='offset points', parse_math=False, **options)


def _shorten(text, axis):
  """Cuts a text in 8 point monospace, where a letter is 0.6 times as wide, to the width of an axis."""
  room = int(72 * axis.get_position().width * axis.figure.get_figwidth() / (8 * 0.603))
  return text if len(text) <= room else text[: room - 1] + '…'


def _draw_wave(axis, wave, sample_rate):
  """Lowest and highest sample of each of up to 2000 short stretches: that is all a picture can show of many samples."""
  starts = np.unique(np.linspace(0, len(wave), 2000, endpoint=False).astype(int))
  low, high = np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)
  axis.fill_between(starts / sample_rate, low, high, color=INK, linewidth=0.4)
  peak = np.abs(wave).max() or 1
  axis.set_ylim(-1.05 * peak, 1.05 * peak)
  axis.set_yticks([])


def _draw_frames(axis, colours, sample_rate):
  """Colours [rows, T, 3] of frames, the first row on top, y from 0 to rows."""
  rows, count = colours.shape[:2]
  extent = (0, count * _STRIDE / sample_rate, rows, 0)
  axis.imshow(colours, extent=extent, aspect='auto', interpolation='nearest')


def _draw_probabilities(axis, values, symbols, sample_rate):
  seconds = (np.arange(len(values)) + 0.5) * _STRIDE / sample_rate
  axis.fill_between(seconds, values[:, 0], color=_BLANK, linewidth=0)
  for symbol in np.flatnonzero(values.max(axis=0) > _SHOWN_ABOVE):
    if symbol == 0:
      continue
    line, name, colour = values[:, symbol], symbols[symbol], _SYMBOL_COLOURS[symbol % len(_SYMBOL_COLOURS)]
    if name in ('|', ' '):
      name, colour = '␣', MUTED
    axis.plot(seconds, line, color=colour, linewidth=1.2)
    for peak in _peaks(line):
      # Names of what is likelier than all else stand in one row, to be read as text; rivals at the height of their peak.
      height = 1 if line[peak] > 0.5 else line[peak]
      axis.annotate(
        name, (seconds[peak], height), (0, 2), textcoords='offset points', parse_math=False,
        ha='center', va='bottom', fontsize=8, color=colour,
      )  # fmt: skip
  axis.set_ylim(0, 1.25)
  axis.set_yticks([0, 1])
  axis.spines['bottom'].set_visible(True)
  axis.spines['bottom'].set(color=GRID, linewidth=1.6)


def _peaks(line):
  """The highest place of each stretch that exceeds what is shown."""
  bounds = np.flatnonzero(np.diff(line > _SHOWN_ABOVE, prepend=False, append=False))
  return [start + line[start:end].argmax() for start, end in bounds.reshape(-1, 2)]


def _draw_spectrogram(axis, wave, sample_rate):
  levels = _log_mel(np.asarray(wave, np.float64), sample_rate)
  hop, top = 0.01, _mel(sample_rate / 2)
  faintest = max(levels.max() - _DECIBELS, _SILENCE)
  axis.imshow(
    levels.T, extent=(-hop / 2, (len(levels) - 0.5) * hop, 0, top), origin='lower', aspect='auto', cmap='gray_r',
    vmin=faintest, vmax=faintest + _DECIBELS,
  )  # fmt: skip
  kilohertz = [k for k in (1, 4) if 2000 * k <= sample_rate]
  axis.set_yticks([_mel(1000 * k) for k in kilohertz], [f'{k} kHz' for k in kilohertz])


def _log_mel(wave, sample_rate):
  """Decibels [t, bands] of 25 ms around every 10 ms, frequencies as far apart as they sound."""
  window, hop = round(0.025 * sample_rate), round(0.01 * sample_rate)
  pieces = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (window // 2, window)), window)[: len(wave) : hop]
  bins = 2 * window  # twice as fine as the window tells apart, so that no band is without a bin
  power = np.abs(np.fft.rfft(pieces * np.hanning(window), bins)) ** 2
  frequencies = _mel(np.fft.rfftfreq(bins, 1 / sample_rate))
  edges = np.linspace(0, _mel(sample_rate / 2), _BANDS + 2)
  triangles = np.maximum(1 - np.abs(frequencies[:, None] - edges[1:-1]) / edges[1], 0)
  return 10 * np.log10(power @ triangles + 10 ** (_SILENCE / 10))


def _mel(hertz):
  return 2595 * np.log10(1 + hertz / 700)


def _rgb(colour):
  return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
