"""`sample:shapes`: grey 32 x 32 images of eight bright shapes on a dark ground, drawn on the spot.

The class is independent of size, place, rotation and brightness, so raw pixels say little about it, while the parts of a
shape predict each other: small enough to show self-supervised learning within minutes, and it needs no download.
"""

import functools

import numpy as np

CLASSES = ('disc', 'triangle', 'square', 'star', 'cross', 'ring', 'crescent', 'bar')
NUM_TRAIN = 16_000
NUM_TEST = 4_000
SIDE = 32
_CHUNK = 500  # images drawn at once: small enough to stay in the processor's cache


@functools.cache
def shapes(split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (images uint8 [N, 32, 32], labels int32 [N]) of 'train' or 'test'.

  The training part is always the same; the test part is drawn afresh for every seed. Two calls give the same arrays:
  do not write into them.
  """
  rng = np.random.default_rng((0,) if split == 'train' else (1, seed))
  count = NUM_TRAIN if split == 'train' else NUM_TEST
  labels = rng.integers(len(CLASSES), size=count, dtype=np.int32)
  images = np.empty((count, SIDE, SIDE), np.uint8)
  for start in range(0, count, _CHUNK):
    images[start : start + _CHUNK] = _draw(rng, labels[start : start + _CHUNK])
  return images, labels


def _draw(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
  """Returns uint8 [N, 32, 32]: background, one clutter bar, the shape over it, pixel noise."""
  count = len(labels)

  def uniform(low, high):
    return rng.uniform(low, high, (count, 1, 1)).astype(np.float32)

  radius = uniform(7.5, 12)
  centre_x, centre_y = uniform(0.9 * radius, SIDE - 0.9 * radius), uniform(0.9 * radius, SIDE - 0.9 * radius)
  u, v = _rotated(centre_x, centre_y, uniform(0, 2 * np.pi))
  u, v = u / radius, v / radius
  inside = np.empty((count, SIDE, SIDE), np.float32)
  for label in range(len(CLASSES)):
    members = labels == label
    inside[members] = _signed_distance(label, u[members], v[members])
  shape_alpha = np.clip(0.5 - inside * radius, 0, 1)

  u, v = _rotated(uniform(0, SIDE), uniform(0, SIDE), uniform(0, 2 * np.pi))
  bar_alpha = np.clip(0.5 - np.maximum(np.abs(u) - uniform(2, 6), np.abs(v) - uniform(0.5, 1.2)), 0, 1)

  field = rng.standard_normal((3, count, 5, 5), np.float32).mean(0)
  image = uniform(0.1, 0.4) + 0.04 * _enlarge(field) + _texture(uniform)
  image += bar_alpha * (uniform(0.5, 1) - image)
  image += shape_alpha * (uniform(0.6, 1) + _texture(uniform) - image)
  image += 0.02 * rng.standard_normal(image.shape, np.float32)
  return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _rotated(centre_x, centre_y, angle) -> tuple[np.ndarray, np.ndarray]:
  """Pixel centres in the frame of a figure, float32 [N, 32, 32] each."""
  pixel = np.arange(SIDE, dtype=np.float32) + 0.5
  x, y = pixel[None, None, :] - centre_x, pixel[None, :, None] - centre_y
  cos, sin = np.cos(angle), np.sin(angle)
  return cos * x + sin * y, cos * y - sin * x


def _signed_distance(label: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  """Negative inside the shape of unit radius, roughly the distance to its edge elsewhere."""
  name = CLASSES[label]
  if name == 'cross':
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(u, v) - 0.28, np.maximum(u, v) - 0.95)
  if name == 'bar':
    return np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.38)
  radius = np.hypot(u, v)
  if name == 'disc':
    return radius - 0.85
  if name == 'ring':
    return np.abs(radius - 0.75) - 0.2
  if name == 'crescent':
    return np.maximum(radius - 0.95, 0.7 - np.hypot(u - 0.5, v))
  corners = {'triangle': 3, 'square': 4, 'star': 5}[name]
  sector = np.mod(np.arctan2(v, u), 2 * np.pi / corners) - np.pi / corners
  if name == 'star':
    tip = np.abs(sector) * (corners / np.pi)
    return radius - (0.4 * (1 - tip) + tip)
  return radius * np.cos(sector) - np.cos(np.pi / corners)


def _texture(uniform) -> np.ndarray:
  """A faint sinusoid of random direction, wavelength, phase and strength, float32 [N, 32, 32]."""
  along, _ = _rotated(0, 0, uniform(0, 2 * np.pi))
  return 0.02 * uniform(0, 1) * np.sin(uniform(0.5, 2) * along + uniform(0, 2 * np.pi))


def _enlarge(field: np.ndarray) -> np.ndarray:
  """Bilinear interpolation of [N, 5, 5] to [N, 32, 32]."""
  place = np.linspace(0, 4, SIDE, dtype=np.float32)
  weights = np.clip(1 - np.abs(place[:, None] - np.arange(5, dtype=np.float32)), 0, 1)
  return weights @ field @ weights.T
