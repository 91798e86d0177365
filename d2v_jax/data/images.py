"""Encoded or raw images to uint8 [S, S, 3]: the training crop and the evaluation crop.

Resampling is Pillow's antialiased bicubic filter, the one behind the published recipes. Orientation tags (EXIF) are
ignored, as torchvision's loader ignores them; transparency is dropped; only the first frame of an animation is read; 16-bit
greys are scaled to 8 bits; greys become three equal channels.
"""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

_CROP_ATTEMPTS = 10
# Evaluation resizes the shorter side to S times this before it cuts the centre: 256 pixels for 224.
_EVAL_MARGIN = 256 / 224


def train_image(data, size: int, crop_area, crop_aspect, flip: bool, rng: np.random.Generator) -> np.ndarray:
  """Random resized crop, then perhaps a mirror image.

  Args:
    data: encoded image bytes, or uint8 [H, W], [H, W, 1] or [H, W, 3].
    size: side of the result in pixels.
    crop_area: range of the crop's fraction of the area; crop_aspect: range of its width / height, drawn log-uniformly.
    flip: whether to mirror left-right with probability one half.
    rng: the example's own generator; the number of values drawn from it does not depend on the image.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError or OSError: the image cannot be decoded.
  """
  image = _open(data)
  uniform = rng.random(2 * _CROP_ATTEMPTS + 3)
  box = random_crop_box(*image.size, crop_area, crop_aspect, uniform[:-1])
  image = _random_crop(image, box, size)
  if flip and uniform[-1] < 0.5:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(image)


def eval_image(data, size: int) -> np.ndarray:
  """The centre: shorter side to size * 256 / 224, then a size x size cut. See `train_image` for `data` and what is raised.

  An image of exactly size x size is left alone; one whose shorter side is at most `size` is resized without the margin.
  """
  image = _open(data)
  width, height = image.size
  if (width, height) == (size, size):
    return np.asarray(_to_rgb(image))
  shorter = round(size * _EVAL_MARGIN) if min(width, height) > size else size
  if width <= height:
    resized = (shorter, int(shorter * height / width))
  else:
    resized = (int(shorter * width / height), shorter)
  image = _to_rgb(image).resize(resized, Image.Resampling.BICUBIC)
  left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def random_crop_box(width: int, height: int, crop_area, crop_aspect, uniform: np.ndarray) -> tuple[int, int, int, int]:
  """Returns (left, top, right, bottom) of a random crop, from 22 numbers in [0, 1).

  Ten attempts at an area fraction and an aspect ratio that fit the image; then the largest centred crop whose aspect
  ratio is allowed.
  """
  log_aspect = math.log(crop_aspect[0]), math.log(crop_aspect[1])
  for attempt in range(_CROP_ATTEMPTS):
    area = width * height * (crop_area[0] + (crop_area[1] - crop_area[0]) * uniform[2 * attempt])
    aspect = math.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * uniform[2 * attempt + 1])
    crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      left = int(uniform[-2] * (width - crop_width + 1))
      top = int(uniform[-1] * (height - crop_height + 1))
      return left, top, left + crop_width, top + crop_height
  crop_width, crop_height = width, height
  if width / height < crop_aspect[0]:
    crop_height = max(round(width / crop_aspect[0]), 1)
  elif width / height > crop_aspect[1]:
    crop_width = max(round(height * crop_aspect[1]), 1)
  left, top = (width - crop_width) // 2, (height - crop_height) // 2
  return left, top, left + crop_width, top + crop_height


def _open(data) -> Image.Image:
  """Reads the header only; pixels are decoded on first use."""
  if isinstance(data, np.ndarray):
    return Image.fromarray(data[..., 0] if data.ndim == 3 and data.shape[2] == 1 else data)
  try:
    return Image.open(io.BytesIO(data))
  except UnidentifiedImageError:
    found = 'an empty file' if not data else f'bytes that begin with {data[:8]!r}'
    raise ValueError(f'not an image that Pillow can read: {found}') from None


def _random_crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
  """Cuts out `box` and resizes it to size x size; pixels outside have no influence, but for a large JPEG (see below)."""
  shrink = min(box[2] - box[0], box[3] - box[1]) / size
  if image.format == 'JPEG' and shrink >= 2:
    # libjpeg decodes to 1/2, 1/4 or 1/8 two to four times faster. The crop keeps at least size x size pixels, and the
    # result differs by 0.1 to 0.4 of 255 on average, less than from moving the crop by one pixel.
    width, height = image.size
    factor = 1 << int(math.log2(min(shrink, 8)))
    image.draft(None, (width // factor, height // factor))
    return _to_rgb(image).resize((size, size), Image.Resampling.BICUBIC, box=tuple(edge / factor for edge in box))
  image = _to_rgb(image)
  if box != (0, 0, *image.size):
    image = image.crop(box)
  return image.resize((size, size), Image.Resampling.BICUBIC)


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode == 'RGB':
    image.load()
    return image
  if image.mode.startswith('I'):  # 16-bit greys, which Pillow would clip
    grey = np.asarray(image, np.float32).clip(0, 65535) / 257
    image = Image.fromarray(np.rint(grey).astype(np.uint8))
  return image.convert('RGB')
