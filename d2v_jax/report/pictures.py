"""Pictures of a run, as PNG: what is masked, what patch features tell apart, who is near whom, how the training went.

Every function writes its file atomically and draws without a display. Matplotlib is imported when the first one is called.
"""

import io
import math

import numpy as np

from d2v_jax.report.writers import write_atomically

INK, MUTED, GRID = '#1f2328', '#6e7781', '#e6e8eb'
BLUE, RED, GREEN = '#0969da', '#cf222e', '#1a7f37'


def masks(path, images, masks, grid) -> None:
  """Draws every image beside what is visible of it under each of its masks.

  Args:
    path: the PNG file.
    images: uint8 [n, S, S, 3].
    masks: bool [n, M, T], True = hidden from the student; T = rows * columns of the grid.
    grid: (rows, columns) of patches.
  """
  images, masks = np.asarray(images), np.asarray(masks)
  count, views = masks.shape[:2]
  figure, axes = _panel(count, views + 1)
  for row in range(count):
    _show(axes[row, 0], images[row])
    for view in range(views):
      hidden = _to_pixels(masks[row, view].reshape(grid), images.shape[1:3])
      # Hidden patches keep a trace of the image, so that the eye can tell what the student has to guess.
      faded = np.where(hidden[..., None], 224 + 0.12 * (images[row] - 128.0), images[row])
      _show(axes[row, view + 1], np.clip(faded, 0, 255).astype(np.uint8))
  axes[0, 0].set_title('image', fontsize=10, color=INK)
  axes[0, 1].set_title(f'visible under {views} masks ({100 * (1 - masks.mean()):.0f}%)', fontsize=10, color=INK, loc='left')
  save(figure, path)


def feature_maps(path, images, patch_features, grid, untrained_features=None) -> None:
  """Draws patch features as colours: patches of like colour have like features.

  The three leading principal components over all patches of the panel become red, green and blue; before that the mean
  over the images is taken off at each place, since trained features tell first of all where a patch is.

  Args:
    path: the PNG file.
    images: uint8 [n, S, S, 3].
    patch_features: float [n, T, D] of the trained network, without extra tokens.
    grid: (rows, columns) of patches.
    untrained_features: the same of the untrained network: one more row.
  """
  rows = {'image': np.asarray(images), 'trained': _component_colours(_without_place(patch_features), grid)}
  if untrained_features is not None:
    rows['untrained'] = _component_colours(_without_place(untrained_features), grid)
  figure, axes = _panel(len(rows), len(images), left=0.8)
  for row, (name, pictures) in enumerate(rows.items()):
    for column, picture in enumerate(pictures):
      _show(axes[row, column], picture)
    axes[row, 0].set_ylabel(name, fontsize=10, color=INK, rotation=0, ha='right', va='center', labelpad=8)
  axes[0, 0].set_title(
    'patch features less their mean at each place, principal components as red, green, blue',
    fontsize=10,
    color=INK,
    loc='left',
  )
  save(figure, path)


def neighbours(path, query_images, neighbour_images, query_labels, neighbour_labels, class_names) -> None:
  """Draws test images and their nearest training examples, framed green where the class agrees and red where not.

  Args:
    path: the PNG file.
    query_images: uint8 [n, S, S, 3].
    neighbour_images: uint8 [n, k, S, S, 3], nearest first.
    query_labels: int [n].
    neighbour_labels: int [n, k].
    class_names: names in label order.
  """
  count, k = np.shape(neighbour_labels)
  figure, axes = _panel(count, k + 1, captions=True)
  for row in range(count):
    _show(axes[row, 0], query_images[row], frame=INK)
    for place in range(k):
      agrees = neighbour_labels[row][place] == query_labels[row]
      _show(axes[row, place + 1], neighbour_images[row][place], frame=GREEN if agrees else RED)
    for axis, label in zip(axes[row], [query_labels[row], *neighbour_labels[row]]):
      axis.set_xlabel(_shorten(str(class_names[label])), fontsize=8, color=MUTED, labelpad=3)
  agreement = np.mean(np.asarray(neighbour_labels) == np.asarray(query_labels)[:, None])
  axes[0, 0].set_title('query', fontsize=10, color=INK)
  axes[0, 1].set_title(f'nearest neighbours ({100 * agreement:.0f}% of the class)', fontsize=10, color=INK, loc='left')
  save(figure, path)


def curves(path, metrics: list[dict]) -> None:
  """Draws the run's course from the rows of metrics.jsonl (`report.writers.read_metrics`), as far as they have the values.

  Panels: loss; learning rate; EMA decay; spread of targets and predictions; error per element against the variance of the
  target at a fixed position (only an error below it tells of more than positions); accuracies, with raw pixels and the
  untrained network as lines.
  """
  import matplotlib.ticker

  panels = [
    (title, options, lines) for title, options, *lines in _CURVES if any(_series(metrics, line[0])[0].size for line in lines)
  ]
  columns = min(3, max(len(panels), 1))
  rows = max(math.ceil(len(panels) / columns), 1)
  figure = new_figure(4.0 * columns, 2.9 * rows)
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes[len(panels) :]:
    axis.axis('off')
  for axis, (title, options, lines) in zip(axes, panels):
    for name, label, colour, style in lines:
      steps, values = _series(metrics, name)
      if not steps.size:
        continue
      if style == '-':
        axis.plot(
          steps, values, color=colour, label=label, linewidth=1.6, marker='o' if steps.size <= 20 else None, markersize=3.5
        )
      else:  # a control: one value for the whole run
        axis.axhline(values[-1], color=colour, label=label, linewidth=1.4, linestyle=style)
    axis.set_title(title, fontsize=10, color=INK, loc='left')
    axis.set_xlabel('step', fontsize=8, color=MUTED)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
    axis.spines[['left', 'bottom']].set_color(GRID)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    if len(lines) > 1:
      axis.legend(fontsize=7.5, frameon=False, labelcolor=INK, handlelength=1.8)
    if 'log' in options and _spans_decades(axis):
      axis.set_yscale('log')
    elif 'zero' in options:
      axis.set_ylim(bottom=0)
    axis.tick_params(which='both', labelsize=8, colors=MUTED, length=0)
  figure.tight_layout(pad=1.0)
  save(figure, path)


# Title, options, then lines: (metric, label, colour, style). 'log': logarithmic where the values span enough decades;
# 'zero': the axis starts at zero.
_CURVES = (
  ('loss', ('log',), ('train/loss', 'loss', BLUE, '-')),
  ('learning rate', ('zero',), ('train/learning_rate', 'learning rate', BLUE, '-')),
  ('EMA decay of the teacher', (), ('train/ema_decay', 'decay', BLUE, '-')),
  (
    'spread (standard deviation)',
    ('zero',),
    ('train/target_std', 'targets', BLUE, '-'),
    ('train/pred_std', 'predictions', RED, '-'),
  ),
  (
    'error, and the error of positions alone',
    ('zero',),
    ('train/mse', 'squared error per element', BLUE, '-'),
    ('train/target_content', 'best that positions alone can reach', RED, '-'),
  ),
  ('gradient norm', ('log',), ('train/grad_norm', 'norm', BLUE, '-')),
  (
    'accuracy of frozen features',
    (),
    ('eval/knn/accuracy', 'kNN', BLUE, '-'),
    ('eval/knn/untrained', 'kNN, untrained', BLUE, '--'),
    ('eval/knn/pixels', 'kNN, raw pixels', BLUE, ':'),
    ('eval/linear_probe/accuracy', 'linear probe', RED, '-'),
    ('eval/linear_probe/untrained', 'linear probe, untrained', RED, '--'),
    ('eval/linear_probe/pixels', 'linear probe, raw pixels', RED, ':'),
  ),
  (
    'errors by greedy decoding',
    ('zero',),
    ('eval/wer', 'of words', BLUE, '-'),
    ('eval/cer', 'of characters', RED, '-'),
  ),
  ('examples per second', ('zero',), ('train/examples_per_second', 'examples/s', BLUE, '-')),
)


def _series(metrics, name):
  points = [(row['step'], row[name]) for row in metrics if name in row and math.isfinite(row[name])]
  return np.array([step for step, _ in points]), np.array([value for _, value in points])


def _spans_decades(axis):
  values = np.concatenate([line.get_ydata() for line in axis.lines])
  return values.min() > 0 and values.max() / values.min() > 20


def _without_place(features):
  """Takes off the mean over the images at each place; of a single image there is none to take."""
  features = np.asarray(features, np.float64)
  return features - features.mean(axis=0) if len(features) > 1 else features


def _component_colours(features, grid):
  """Features [n, T, D] to colours [n, rows, columns, 3] in [0, 1]."""
  features = np.asarray(features, np.float64)
  return principal_colours(features.reshape(-1, features.shape[-1])).reshape(len(features), *grid, 3)


def principal_colours(features) -> np.ndarray:
  """Features float [n, D] to colours [n, 3] in [0, 1]: their three leading principal components as red, green and blue."""
  features = np.asarray(features, np.float64)
  centred = features - features.mean(axis=0)
  components = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :3]
  # The sign of a component is arbitrary: fix it, so that the same features give the same colours.
  components *= np.sign(components[np.abs(components).argmax(axis=0), np.arange(components.shape[1])])
  values = centred @ components
  # Percentiles, so that a few outlying patches do not grey out the rest.
  low, high = np.percentile(values, [2, 98], axis=0)
  colours = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
  return np.pad(colours, ((0, 0), (0, 3 - colours.shape[1])), constant_values=0.5)


def _to_pixels(patches, size):
  """Enlarges [rows, columns] to the pixels of the image."""
  rows, columns = (np.arange(pixels) * patch // pixels for pixels, patch in zip(size, patches.shape))
  return patches[rows[:, None], columns[None, :]]


def _shorten(name):
  return name if len(name) <= 14 else name[:13] + '…'


def new_figure(width, height):
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  # Without pyplot: no global state, no display.
  figure = Figure(figsize=(width, height), facecolor='white')
  FigureCanvasAgg(figure)
  return figure


def _panel(rows, columns, left=0.15, captions=False):
  """A figure with rows x columns of square pictures, with room for captions below. Returns it and its axes."""
  cell, gap, top = 1.25, 0.1, 0.4
  gap_below = 0.28 if captions else gap
  width = left + columns * (cell + gap)
  height = top + rows * (cell + gap_below)
  figure = new_figure(width, height)
  axes = figure.subplots(
    rows, columns, squeeze=False,
    gridspec_kw={
      'left': left / width, 'right': 1 - gap / width, 'top': 1 - top / height, 'bottom': gap_below / height,
      'wspace': gap / cell, 'hspace': gap_below / cell,
    },
  )  # fmt: skip
  return figure, axes


def _show(axis, picture, frame=None):
  axis.imshow(picture, interpolation='nearest')
  axis.set_xticks([])
  axis.set_yticks([])
  for spine in axis.spines.values():
    spine.set_visible(frame is not None)
    spine.set_color(frame or 'none')
    spine.set_linewidth(2.5)


def save(figure, path):
  content = io.BytesIO()
  figure.savefig(content, format='png', dpi=130)
  write_atomically(path, content.getvalue())
