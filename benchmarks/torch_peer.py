"""The data2vec 2.0 image train step in PyTorch, with the shapes of `configs/image_base.py` or `image_large.py`.

The yardstick of `benchmarks/compare.py`: what a careful PyTorch program takes for the same work on the same machine. Random
images; everything else is real: patches, positions, masked views, the student on visible tokens, the convolutional decoder,
the teacher's pass and targets, both losses, backward, clipping, AdamW (fused) and the teacher's update.

  python benchmarks/torch_peer.py --images=4 --masks=8 --dtype=float32 --steps=5

The last line is one JSON object with `step_seconds`, the median over the steps.
"""

import argparse
import copy
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

MODELS = {
  'base': {'width': 768, 'heads': 12, 'prenet': 2, 'depth': 10, 'visible': 39, 'kernel': 3, 'decoder_layers': 6, 'top': 10},
  'large': {
    'width': 1024,
    'heads': 16,
    'prenet': 0,
    'depth': 24,
    'visible': 49,
    'kernel': 5,
    'decoder_layers': 3,
    'top': 18,
  },
}
PATCH, GRID, GROUPS = 16, 14, 16


def sine_cosine_positions(width: int) -> torch.Tensor:
  """[196, width]: the first half encodes the column, the second the row."""
  frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
  angles = torch.arange(GRID)[:, None] * frequencies
  table = torch.cat([angles.sin(), angles.cos()], 1)
  return torch.cat([table.repeat(GRID, 1), table.repeat_interleave(GRID, 0)], 1)


class Block(nn.Module):
  """Post-norm transformer block; returns its output and that of its MLP."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.output = nn.Linear(width, width)
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    self.norm2 = nn.LayerNorm(width, eps=1e-6)

  def forward(self, x):
    rows, tokens, width = x.shape
    query, key, value = self.qkv(x).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value)
    x = self.norm1(x + self.output(attended.transpose(1, 2).reshape(rows, tokens, width)))
    mlp_output = self.mlp(x)
    return self.norm2(x + mlp_output), mlp_output


class Encoder(nn.Module):
  """Patches, positions, CLS token, blocks."""

  def __init__(self, options: dict):
    super().__init__()
    width = options['width']
    self.projection = nn.Linear(PATCH * PATCH * 3, width)
    self.register_buffer('positions', sine_cosine_positions(width))
    self.cls = nn.Parameter(torch.randn(1, 1, width))
    self.norm = nn.LayerNorm(width, eps=1e-6)
    self.blocks = nn.ModuleList(Block(width, options['heads']) for _ in range(options['prenet'] + options['depth']))

  def forward(self, images, visible=None):
    """Images [B, 224, 224, 3]; visible [B, M, V] indices of kept tokens, or None for all tokens and no views."""
    x = images.unflatten(2, (GRID, PATCH)).unflatten(1, (GRID, PATCH)).transpose(2, 3)
    x = self.projection(x.reshape(len(images), GRID * GRID, -1)) + self.positions
    if visible is not None:
      rows = torch.arange(len(x), device=x.device)[:, None, None]
      x = x[rows, visible].flatten(0, 1)
    x = self.norm(torch.cat([self.cls.expand(len(x), -1, -1), x], 1))
    mlp_outputs = []
    for block in self.blocks:
      x, mlp_output = block(x)
      mlp_outputs.append(mlp_output)
    return x, mlp_outputs


class Decoder(nn.Module):
  """Grouped convolutions, each with channel norm, GELU and a residual."""

  def __init__(self, options: dict):
    super().__init__()
    width, kernel = options['width'], options['kernel']
    self.layers = nn.ModuleList(
      nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=GROUPS) for _ in range(options['decoder_layers'])
    )
    self.projection = nn.Linear(width, width)

  def forward(self, x):
    x = x.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
    for layer in self.layers:
      y = layer(x).permute(0, 2, 3, 1)
      x = x + F.gelu(F.layer_norm(y, y.shape[-1:])).permute(0, 3, 1, 2)
    return self.projection(x.permute(0, 2, 3, 1).flatten(1, 2))


class Data2vec2(nn.Module):
  """Student and decoder; `forward` is the loss, given the teacher."""

  def __init__(self, options: dict):
    super().__init__()
    self.options = options
    self.encoder = Encoder(options)
    self.decoder = Decoder(options)

  def forward(self, teacher: Encoder, images: torch.Tensor, masks: int) -> torch.Tensor:
    tokens, kept, width = GRID * GRID, self.options['visible'], self.options['width']
    order = torch.rand(len(images), masks, tokens, device=images.device).argsort(-1)
    visible, masked = order[..., :kept], order[..., kept:]
    with torch.no_grad():
      _, layers = teacher(images)
      normalised = [F.instance_norm(layer[:, 1:].float().transpose(1, 2)) for layer in layers[-self.options['top'] :]]
      targets = (sum(normalised) / len(normalised)).transpose(1, 2)
      targets = F.layer_norm(targets, (width,))

    output, _ = self.encoder(images, visible)
    noise = 0.01 * torch.randn(len(output), tokens - kept, width, device=images.device, dtype=output.dtype)
    restore = order.argsort(-1).flatten(0, 1)[..., None].expand(-1, -1, width)
    prediction = self.decoder(torch.cat([output[:, 1:], noise], 1).gather(1, restore)).view(
      len(images), masks, tokens, width
    )

    where = masked[..., None].expand(-1, -1, -1, width)
    target = targets[:, None].expand(-1, masks, -1, -1).gather(2, where)
    regression = F.mse_loss(prediction.gather(2, where).float(), target, reduction='sum') / (where.numel() // width)
    cls_error = output[:, 0].view(len(images), masks, width).float() - targets.mean(1)[:, None]
    return (regression + 0.01 * cls_error.square().sum()) / math.sqrt(width)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', choices=MODELS, default='base')
  parser.add_argument('--images', type=int, default=4)
  parser.add_argument('--masks', type=int, default=8, help='masked views per image')
  parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32', help='bfloat16 is autocast')
  parser.add_argument('--device', default='cpu')
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--compile', action='store_true', help='torch.compile the student and the teacher')
  arguments = parser.parse_args()

  device = torch.device(arguments.device)
  torch.manual_seed(0)
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision('high')
  model = Data2vec2(MODELS[arguments.model]).to(device)
  if device.type == 'cuda':
    model.decoder.to(memory_format=torch.channels_last)
  teacher = copy.deepcopy(model.encoder).requires_grad_(False)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
  loss_of = torch.compile(model) if arguments.compile else model
  student_weights, teacher_weights = list(model.encoder.parameters()), list(teacher.parameters())
  images = torch.randn(arguments.images, GRID * PATCH, GRID * PATCH, 3, device=device)

  def step():
    with torch.autocast(device.type, torch.bfloat16, enabled=arguments.dtype == 'bfloat16'):
      loss = loss_of(teacher, images, arguments.masks)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 4.0)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
      torch._foreach_lerp_(teacher_weights, student_weights, 2e-4)
    return loss.item()

  for _ in range(2 if device.type == 'cpu' else 5):
    step()
  seconds = []
  for _ in range(arguments.steps):
    start = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - start)
  result = {
    'step_seconds': statistics.median(seconds),
    'step_seconds_min': min(seconds),
    'images_per_second': arguments.images / statistics.median(seconds),
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
