"""Our train step beside PyTorch's, run in turns so that both see the same machine.

  python benchmarks/compare.py --model=image_base --rounds=3 --dtype=float32 --examples=4 --masks=8
  python benchmarks/compare.py --model=audio_base --rounds=3 --dtype=float32 --examples=1 --seconds=20 --masks=8
  python benchmarks/compare.py --model=text_base --rounds=3 --dtype=float32 --examples=1 --masks=8

Each round runs `benchmarks/torch_peer.py` and then `python -m d2v_jax.benchmark`, each in its own process, and reads the
JSON object that each prints last. Prints both times of every round and their ratio, then one JSON object with the median
ratio; below 1 ours is faster.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def last_json(command: list[str]) -> dict:
  """Runs a command and returns the JSON object of its last line; its errors go to our stderr."""
  result = subprocess.run([sys.executable, *command], cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(result.stdout.strip().splitlines()[-1])


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', choices=['image_base', 'image_large', 'audio_base', 'text_base'], default='image_base')
  parser.add_argument('--examples', type=int, default=4, help='images, clips or blocks of text in a batch')
  parser.add_argument('--seconds', type=float, default=20.0, help='length of the clips (audio)')
  parser.add_argument('--masks', type=int, default=8, help='masked views per example')
  parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
  parser.add_argument('--device', default='cpu', help='of the peer; ours takes the default device of JAX')
  parser.add_argument('--steps', type=int, default=5, help='in each round')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--compile', action='store_true', help='torch.compile the peer')
  arguments = parser.parse_args()

  peer = [str(HERE / 'torch_peer.py'), *(['--compile'] if arguments.compile else [])]
  names = ('model', 'examples', 'seconds', 'masks', 'dtype', 'device', 'steps')
  peer += [f'--{name}={getattr(arguments, name)}' for name in names]
  ours = ['-m', 'd2v_jax.benchmark', f'--config=configs/{arguments.model}.py', f'--steps={arguments.steps}']
  ours += [f'--config.batch_size={arguments.examples}', f'--config.data2vec2.masks_per_example={arguments.masks}']
  ours += [f'--config.dtype={arguments.dtype}', '--pipeline_seconds=0']
  if arguments.model.startswith('audio'):
    ours += [f'--config.data.bucket_seconds=({arguments.seconds},)', '--config.data.rows_multiple=1']

  ratios = []
  for i in range(arguments.rounds):
    torch_seconds, our_seconds = last_json(peer)['step_seconds'], last_json(ours)['step_seconds']
    ratios.append(our_seconds / torch_seconds)
    print(f'round {i + 1}: torch {torch_seconds:.3f} s, ours {our_seconds:.3f} s, ratio {ratios[-1]:.2f}', flush=True)
  print(json.dumps({'ratio': statistics.median(ratios), 'ratios': ratios, **vars(arguments)}))


if __name__ == '__main__':
  main()
