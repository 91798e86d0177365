"""The data2vec 2.0 train step in PyTorch, with the shapes of `configs/image_base.py`, `image_large.py`, `audio_base.py` or
`text_base.py`.

The yardstick of `benchmarks/compare.py`: what a careful PyTorch program takes for the same work on the same machine. Random
inputs and masks of single tokens; everything else is real: local features, positions, masked views, the student on visible
tokens with its dropouts, the convolutional decoder, the teacher's pass and targets, the losses, backward, clipping, AdamW
(fused) and the teacher's update.

  python benchmarks/torch_peer.py --model=image_base --examples=4 --masks=8 --dtype=float32 --steps=5
  python benchmarks/torch_peer.py --model=audio_base --examples=1 --seconds=20 --masks=8 --dtype=float32 --steps=3
  python benchmarks/torch_peer.py --model=text_base --examples=1 --masks=8 --dtype=float32 --steps=3

The last line is one JSON object with `step_seconds`, the median over the steps.
"""

import argparse
import copy
import itertools
import json
import math
import random
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

IMAGE_BASE = {
  'modality': 'image',
  'width': 768,
  'heads': 12,
  'blocks': 12,
  'masked': 157 / 196,
  'top': 10,  # layers averaged into the targets
  'decoder': {'width': 768, 'kernel': 3, 'layers': 6, 'groups': 16, 'residual': True, 'hidden': ()},
  'loss_scale': 768**-0.5,
  'norm_eps': 1e-6,
  'dropout': 0.0,
  'layer_drop': 0.0,
  'adam': {'betas': (0.9, 0.95), 'weight_decay': 0.05},
  'clip_norm': 4.0,
  'ema_rate': 2e-4,
}
AUDIO_BASE = IMAGE_BASE | {
  'modality': 'audio',
  'masked': 0.5,
  'top': 8,
  'decoder': IMAGE_BASE['decoder'] | {'width': 384, 'kernel': 7, 'layers': 4},
  'norm_eps': 1e-5,
  'dropout': 0.1,  # entry, attention weights, attention output, MLP output, decoder input
  'layer_drop': 0.05,
  'adam': {'betas': (0.9, 0.98), 'eps': 1e-6, 'weight_decay': 0.01},
  'clip_norm': None,
  'ema_rate': 1e-3,
}
MODELS = {
  'image_base': IMAGE_BASE,
  'image_large': IMAGE_BASE
  | {
    'width': 1024,
    'heads': 16,
    'blocks': 24,
    'masked': 147 / 196,
    'top': 18,
    'decoder': IMAGE_BASE['decoder'] | {'width': 1024, 'kernel': 5, 'layers': 3},
    'loss_scale': 1024**-0.5,
  },
  'audio_base': AUDIO_BASE,
  'text_base': AUDIO_BASE
  | {
    'modality': 'text',
    'masked': 246 / 512,
    'top': 12,
    'decoder': {'width': 768, 'kernel': 9, 'layers': 5, 'groups': 1, 'residual': False, 'hidden': (1536,)},
    'loss_scale': 1.0,
    'layer_drop': 0.0,
    'clip_norm': 1.0,
    'ema_rate': 1e-4,
  },
}
PATCH, GRID = 16, 14
VOCABULARY, TEXT_TOKENS, PAD = 50_265, 512, 1
SAMPLE_RATE, MASK_NOISE = 16_000, 0.01
WAVE_LAYERS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)  # channels, kernel, stride


def sine_cosine_positions(width: int) -> torch.Tensor:
  """[196, width]: the first half encodes the column, the second the row."""
  frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
  angles = torch.arange(GRID)[:, None] * frequencies
  table = torch.cat([angles.sin(), angles.cos()], 1)
  return torch.cat([table.repeat(GRID, 1), table.repeat_interleave(GRID, 0)], 1)


def alibi_slopes(heads: int) -> torch.Tensor:
  """[heads, 1, 1]; between powers of two, every other slope of twice as many heads fills up."""
  power = 2 ** int(math.log2(heads))
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
  return torch.tensor(slopes)[:, None, None]


def dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
  """Dropout; on CPU by random bytes, which take less than half the time of F.dropout (the rate becomes 26/256)."""
  if x.device.type != 'cpu' or not rate or x.numel() % 8:
    return F.dropout(x, rate)
  dropped = round(256 * rate)
  random_bytes = torch.empty(x.numel() // 8, dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)
  return torch.where(random_bytes.view(x.shape) >= dropped, x * (256 / (256 - dropped)), 0.0)


class Block(nn.Module):
  """Post-norm transformer block; returns its output and that of its MLP."""

  def __init__(self, options: dict):
    super().__init__()
    width = options['width']
    self.heads, self.rate = options['heads'], options['dropout']
    self.qkv = nn.Linear(width, 3 * width)
    self.output = nn.Linear(width, width)
    self.norm1 = nn.LayerNorm(width, eps=options['norm_eps'])
    self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    self.norm2 = nn.LayerNorm(width, eps=options['norm_eps'])

  def attend(self, query, key, value, bias, rate):
    if query.device.type != 'cpu' or not rate:
      return F.scaled_dot_product_attention(query, key, value, bias, rate)
    # CPU has no fused kernel with dropout or with a bias that is trained; this is faster than what SDPA falls back to.
    query, key, value = (x.flatten(0, 1) for x in (query * query.shape[-1] ** -0.5, key, value))
    key = key.transpose(1, 2)
    logits = torch.bmm(query, key) if bias is None else torch.baddbmm(bias.flatten(0, 1), query, key)
    weights = logits.softmax(-1)
    return torch.bmm(dropout(weights, rate), value).unflatten(0, (-1, self.heads))

  def forward(self, x, bias=None):
    """x [rows, tokens, width]; bias of the attention's logits [rows, heads, tokens, tokens] or None."""
    rate = self.rate if self.training else 0.0
    rows, tokens, width = x.shape
    query, key, value = self.qkv(x).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    attended = self.attend(query, key, value, bias, rate).transpose(1, 2).reshape(rows, tokens, width)
    x = self.norm1(x + dropout(self.output(attended), rate))
    mlp_output = self.mlp(x)
    return self.norm2(x + dropout(mlp_output, rate)), mlp_output


class Convolutions(nn.Module):
  """Convolutions over a grid of tokens, each with channel norm and GELU; residuals where asked and widths agree."""

  def __init__(self, rank: int, widths: list[int], kernel: int, groups: int, residual: bool):
    super().__init__()
    self.residual = residual
    convolution = (nn.Conv1d, nn.Conv2d)[rank - 1]
    self.layers = nn.ModuleList(
      convolution(before, after, kernel, padding=kernel // 2, groups=groups) for before, after in itertools.pairwise(widths)
    )

  def forward(self, x):
    """[rows, *grid, channels] to the same with the last layer's channels."""
    for layer in self.layers:
      y = layer(x.movedim(-1, 1)).movedim(1, -1)
      y = F.gelu(F.layer_norm(y, y.shape[-1:]))
      x = x + y if self.residual and x.shape == y.shape else y
    return x


class WaveLayer(nn.Module):
  """Strided convolution without bias and padding, norm over channels, GELU: [rows, time, channels]."""

  def __init__(self, before: int, after: int, kernel: int, stride: int):
    super().__init__()
    self.kernel, self.stride = kernel, stride
    self.weight = nn.Parameter(torch.randn(after, before, kernel) * math.sqrt(2 / (before * kernel)))
    self.norm = nn.LayerNorm(after)

  def forward(self, x):
    if x.device.type == 'cpu':  # as a matrix product: half the time of conv1d, whose gradient of the weight is slow on CPU
      windows = x.unfold(1, self.kernel, self.stride).transpose(2, 3).flatten(2)
      x = F.linear(windows, self.weight.transpose(1, 2).flatten(1))
    else:
      x = F.conv1d(x.transpose(1, 2), self.weight, stride=self.stride).transpose(1, 2)
    return F.gelu(self.norm(x))


class Entry(nn.Module):
  """Norm and dropout at the entry of the blocks."""

  def __init__(self, options: dict):
    super().__init__()
    self.rate = options['dropout']
    self.norm = nn.LayerNorm(options['width'], eps=options['norm_eps'])

  def forward(self, x):
    return dropout(self.norm(x), self.rate if self.training else 0.0)


class Transformer(nn.Module):
  """Blocks; returns the output and the output of each block's MLP."""

  def __init__(self, options: dict):
    super().__init__()
    self.layer_drop = options['layer_drop']
    self.blocks = nn.ModuleList(Block(options) for _ in range(options['blocks']))

  def forward(self, x, bias=None):
    mlp_outputs = []
    for block in self.blocks:
      if self.training and self.layer_drop and random.random() < self.layer_drop:
        continue
      x, mlp_output = block(x, bias)
      mlp_outputs.append(mlp_output)
    return x, mlp_outputs


class ImageEncoder(nn.Module):
  """Patches, positions, CLS token, blocks."""

  grid_rank, extra_tokens, teacher_has_local = 2, 1, True

  def __init__(self, options: dict):
    super().__init__()
    width = options['width']
    self.local = nn.Linear(PATCH * PATCH * 3, width)
    self.register_buffer('positions', sine_cosine_positions(width))
    self.cls = nn.Parameter(torch.randn(1, 1, width))
    self.entry = Entry(options)
    self.transformer = Transformer(options)

  def local_features(self, images):
    """[B, 224, 224, 3] to [B, 196, width]."""
    x = images.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH)).transpose(2, 3)
    return self.local(x.reshape(len(images), GRID * GRID, -1))

  def forward(self, x, visible=None):
    """Local features [B, T, width]; visible [B, M, V] indices of kept tokens, or None for all tokens and no views."""
    x = x + self.positions
    if visible is not None:
      x = take(x, visible).flatten(0, 1)
    return self.transformer(self.entry(torch.cat([self.cls.expand(len(x), -1, -1), x], 1)))


class AudioEncoder(nn.Module):
  """Convolutions on the waveform, convolutional positions, blocks with ALiBi and a learned scale per head."""

  grid_rank, extra_tokens, teacher_has_local = 1, 0, False

  def __init__(self, options: dict):
    super().__init__()
    width = options['width']
    before = (1, *(channels for channels, _, _ in WAVE_LAYERS))
    self.local = nn.Sequential(
      *(WaveLayer(channels, *layer) for channels, layer in zip(before, WAVE_LAYERS, strict=False)),
      nn.LayerNorm(before[-1]),
      nn.Linear(before[-1], width),
    )
    self.positions = Convolutions(1, [width] * 6, 19, groups=16, residual=False)
    self.register_buffer('slopes', alibi_slopes(options['heads']))
    self.alibi_scale = nn.Parameter(torch.ones_like(self.slopes))
    self.entry = Entry(options)
    self.transformer = Transformer(options)

  def local_features(self, waves):
    """[B, samples] to [B, T, width]."""
    return self.local(waves[..., None])

  def forward(self, x, visible=None):
    """As `ImageEncoder.forward`; the positions of a view see zeros in place of its masked frames."""
    if visible is None:
      places = torch.arange(x.shape[1], device=x.device)[None]
      x = x + self.positions(x)
    else:
      places = visible.flatten(0, 1)
      kept = x.new_zeros(*visible.shape[:2], x.shape[1]).scatter_(2, visible, 1)
      positions = self.positions((x[:, None] * kept[..., None]).flatten(0, 1))
      x = take(x, visible).flatten(0, 1) + take(positions, places[:, None])[:, 0]
    distances = (places[:, None, :, None] - places[:, None, None, :]).abs()
    return self.transformer(self.entry(x), distances * (-self.slopes * self.alibi_scale.clamp(min=0)))


class TextEncoder(nn.Module):
  """Embeddings of tokens and positions, blocks. The entry comes before the views, which share its dropout."""

  grid_rank, extra_tokens, teacher_has_local = 1, 0, False

  def __init__(self, options: dict):
    super().__init__()
    width = options['width']
    tokens = nn.Embedding(VOCABULARY, width, PAD)
    positions = nn.Embedding(TEXT_TOKENS + PAD + 1, width, PAD)
    self.local = nn.ModuleDict({'tokens': tokens, 'positions': positions, 'entry': Entry(options)})
    self.transformer = Transformer(options)

  def local_features(self, tokens):
    """[B, T] ids, none of them padding, to [B, T, width]."""
    positions = torch.arange(PAD + 1, PAD + 1 + tokens.shape[1], device=tokens.device)
    return self.local['entry'](self.local['tokens'](tokens) + self.local['positions'](positions))

  def forward(self, x, visible=None):
    """As `ImageEncoder.forward`."""
    return self.transformer(x if visible is None else take(x, visible).flatten(0, 1))


ENCODERS = {'image': ImageEncoder, 'audio': AudioEncoder, 'text': TextEncoder}


def take(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
  """Tokens of x [B, T, width] at indices [B, M, V]: [B, M, V, width]."""
  return x[torch.arange(len(x), device=x.device)[:, None, None], indices]


class Data2vec2(nn.Module):
  """Student and decoder; `forward` is the loss, given the teacher."""

  def __init__(self, encoder: nn.Module, options: dict):
    super().__init__()
    self.options, self.encoder = options, encoder
    width, decoder = options['width'], options['decoder']
    widths = [width] + [decoder['width']] * decoder['layers']
    self.decoder = Convolutions(encoder.grid_rank, widths, decoder['kernel'], decoder['groups'], decoder['residual'])
    first, *others = itertools.pairwise((decoder['width'], *decoder['hidden'], width))
    self.projection = nn.Sequential(nn.Linear(*first))
    for pair in others:
      self.projection.extend([nn.GELU(), nn.Linear(*pair)])

  def forward(self, teacher: nn.Module, inputs: torch.Tensor, masks: int) -> torch.Tensor:
    features = self.encoder.local_features(inputs)
    rows, tokens, width = features.shape
    extra, masked_count = self.encoder.extra_tokens, int(self.options['masked'] * tokens)
    order = torch.rand(rows, masks, tokens, device=features.device).argsort(-1)
    visible, masked = order.split([tokens - masked_count, masked_count], -1)
    with torch.no_grad():
      # The teacher of images has patches of its own; those of audio and text have the front end of the student.
      _, layers = teacher(teacher.local_features(inputs) if teacher.local else features.detach())
      normalised = [F.instance_norm(layer[:, extra:].float().transpose(1, 2)) for layer in layers[-self.options['top'] :]]
      targets = (sum(normalised) / len(normalised)).transpose(1, 2)
      if extra:
        targets = F.layer_norm(targets, (width,))

    output, _ = self.encoder(features, visible)
    noise = MASK_NOISE * torch.randn(len(output), masked_count, width, device=output.device, dtype=output.dtype)
    seen = dropout(output, self.options['dropout'])[:, extra:]
    restore = order.argsort(-1).flatten(0, 1)[..., None].expand(-1, -1, width)
    decoded = torch.cat([seen, noise], 1).gather(1, restore)
    decoded = self.decoder(decoded.unflatten(1, (GRID, GRID)) if extra else decoded)
    prediction = self.projection(decoded).view(rows, masks, tokens, width)

    where = masked[..., None].expand(-1, -1, -1, width)
    loss = F.mse_loss(prediction.gather(2, where).float(), take(targets, masked), reduction='sum') / masked.numel()
    if extra:
      cls_error = output[:, 0].view(rows, masks, width).float() - targets.mean(1)[:, None]
      loss = loss + 0.01 * cls_error.square().sum()
    return loss * self.options['loss_scale']


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', choices=MODELS, default='image_base')
  parser.add_argument('--examples', type=int, default=4, help='images, clips or blocks of text in a batch')
  parser.add_argument('--seconds', type=float, default=20.0, help='length of the clips (audio)')
  parser.add_argument('--masks', type=int, default=8, help='masked views per example')
  parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32', help='bfloat16 is autocast')
  parser.add_argument('--device', default='cpu')
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--compile', action='store_true', help='torch.compile the student and the teacher')
  arguments = parser.parse_args()

  device = torch.device(arguments.device)
  torch.manual_seed(0)
  random.seed(0)
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision('high')
  options = MODELS[arguments.model]
  modality = options['modality']
  model = Data2vec2(ENCODERS[modality](options), options).to(device)
  if device.type == 'cuda' and modality == 'image':
    model.decoder.to(memory_format=torch.channels_last)
  teacher = copy.deepcopy(model.encoder).requires_grad_(False).eval()
  if not teacher.teacher_has_local:
    teacher.local = None
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, **options['adam'])
  teacher_weights = list(teacher.parameters())
  student_weights = [model.encoder.get_parameter(name) for name, _ in teacher.named_parameters()]
  if arguments.compile and options['layer_drop']:  # in parts, as layer drop makes the whole another program at each step
    for part in (*model.modules(), *teacher.modules()):
      if isinstance(part, Block | Convolutions | WaveLayer):
        part.compile()
  elif arguments.compile:
    model.compile()
  if modality == 'text':
    inputs = torch.randint(PAD + 1, VOCABULARY, (arguments.examples, TEXT_TOKENS), device=device)
  else:
    shape = (int(arguments.seconds * SAMPLE_RATE),) if modality == 'audio' else (GRID * PATCH, GRID * PATCH, 3)
    inputs = torch.randn(arguments.examples, *shape, device=device)

  def step():
    with torch.autocast(device.type, torch.bfloat16, enabled=arguments.dtype == 'bfloat16'):
      loss = model(teacher, inputs, arguments.masks)
    loss.backward()
    if options['clip_norm']:
      torch.nn.utils.clip_grad_norm_(model.parameters(), options['clip_norm'])
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
      torch._foreach_lerp_(teacher_weights, student_weights, options['ema_rate'])
    return loss.item()

  for _ in range(2 if device.type == 'cpu' else 5):
    step()
  seconds, losses = [], []
  for _ in range(arguments.steps):
    start = time.perf_counter()
    losses.append(step())
    seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds)
  result = {
    'step_seconds': median,
    'step_seconds_min': min(seconds),
    'examples_per_second': arguments.examples / median,
    **({'audio_seconds_per_second': arguments.examples * arguments.seconds / median} if modality == 'audio' else {}),
    'loss_first': losses[0],
    'loss_last': losses[-1],
    'parameters': sum(weight.numel() for weight in model.parameters()),
    **vars(arguments),
    'torch': torch.__version__,
    'threads': torch.get_num_threads(),
    'device_name': torch.cuda.get_device_name() if device.type == 'cuda' else 'cpu',
  }
  if device.type == 'cuda':
    result['peak_memory_gib'] = torch.cuda.max_memory_allocated() / 2**30
  print(json.dumps(result))


if __name__ == '__main__':
  main()
