"""The command that prepares a corpus: what it says, that it goes on after SIGKILL, and one line for what is wrong."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.train import tiny

CONFIG = tiny.ROOT / 'configs' / 'text_tiny.py'
LINES = ''.join(f'Sentence {number} of the book is long enough, and it is the last but {number}.\n' for number in range(400))


def arguments(source, output, *more):
  fields = (f'--config.data.source={source}', '--config.model.vocab_size=300', '--config.data.block_tokens=16')
  return [f'--config={CONFIG}', f'--output={output}', *fields, *more]


def refused(done, *parts, code=2):
  text = tiny.message(done, code)
  for part in parts:
    assert str(part) in text, f'{part!r} is not in: {text}'


@pytest.fixture
def book(tmp_path):
  (tmp_path / 'book').mkdir()
  (tmp_path / 'book' / 'train.txt').write_text(LINES)
  (tmp_path / 'book' / 'valid.txt').write_text('A test.\nOf two sentences.\n\nAnd another document.\n')
  return f'folder:{tmp_path / "book"}'


def test_it_prepares_then_checks(book, tmp_path):
  out = tmp_path / 'out'
  done = tiny.run('prepare', *arguments(book, out, '--workers=2'))
  assert done.returncode == 0, done.stderr
  about = json.loads((out / 'prepared.json').read_text())
  tokens = {part: (out / f'{part}.bin').stat().st_size // 2 for part in ('train', 'test')}
  assert {part: made['tokens'] for part, made in about['parts'].items()} == tokens
  assert f'train: 1 documents, 400 sentences, {tokens["train"]:,} tokens, {2 * tokens["train"]:,} bytes' in done.stdout
  assert f'test: 2 documents, 3 sentences, {tokens["test"]:,} tokens' in done.stdout
  assert 'tokens per second' in done.stdout
  next_command = next(line for line in done.stdout.splitlines() if line.startswith('next: python -m d2v_jax.main'))
  assert f' --config={CONFIG} ' in next_command and f' --config.data.source=prepared:{out} ' in next_command
  before = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != '.lock'}
  again = tiny.run('prepare', *arguments(book, out))
  assert again.returncode == 0 and 'it is complete: sizes and hashes are right' in again.stdout, again.stderr
  assert {path: path.stat().st_mtime_ns for path in before} == before
  refused(tiny.run('prepare', *arguments(book, out, '--config.data.lines=wrapped')), f'--output: {out}', 'other lines')
  (out / 'train.bin').write_bytes((out / 'train.bin').read_bytes()[:-2])
  refused(tiny.run('prepare', *arguments(book, out)), out / 'train.bin', 'bytes, prepared.json says', f'delete {out}')


def test_what_is_wrong_is_one_line(book, tmp_path):
  out = tmp_path / 'out'
  refused(tiny.run('prepare', f'--config={CONFIG}'), '--output: missing')
  refused(tiny.run('prepare', *arguments('folder:nowhere', out)), 'config.data.source', 'nowhere does not exist')
  refused(tiny.run('prepare', *arguments(book, out, '--config.data.lines=wraped')), 'config.data.lines', 'wrapped')
  other = tiny.ROOT / 'configs' / 'image_tiny.py'
  refused(tiny.run('prepare', f'--config={other}', f'--output={out}'), '--config', 'pretrain on image', 'text')
  path = tmp_path / 'book' / 'train.txt'
  path.write_bytes(LINES.encode() + b'caf\xe9 ')
  done = tiny.run('prepare', *arguments(book, out))
  refused(done, f'{path}: byte 0xe9 at offset {len(LINES) + 3} is not UTF-8', 'iconv -f LATIN1 -t UTF-8')


_PROGRAM = """
import os, sys
from d2v_jax.config import default_config
from d2v_jax.data import prepared, text_corpora
if __name__ == '__main__':
  os.cpu_count = lambda: 2
  text_corpora._UNIT = 1000
  config = default_config('text')
  config.model.vocab_size = 300
  config.data.source = sys.argv[1]
  prepared.prepare(config, sys.argv[2], workers=2)
"""


def test_after_a_signal_it_goes_on_to_the_same_bytes(tmp_path):
  (tmp_path / 'book').write_text(LINES * 20)
  program = tmp_path / 'program.py'
  program.write_text(_PROGRAM)
  run = lambda output: tiny.start(program, f'folder:{tmp_path / "book"}', output)
  whole = tiny.finish(run(tmp_path / 'whole'))
  assert whole.returncode == 0, whole.stderr
  out, rows = tmp_path / 'out', 0
  for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
    process = run(out)
    with tiny.killed_at_the_end(process):
      tiny.wait_for(lambda: count(out / 'journal.jsonl') > rows + 5, process)  # noqa: B023
      workers = children(process.pid)
      process.send_signal(number)
      tiny.finish(process, 20)
    assert workers and not (out / 'prepared.json').exists()
    done, rows = rows, count(out / 'journal.jsonl')
    assert rows > done
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
      assert time.monotonic() < deadline, 'a worker is still running'
      time.sleep(0.05)
  last = tiny.finish(run(out))
  assert last.returncode == 0, last.stderr
  files = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
  assert files(out) == files(tmp_path / 'whole')


def count(path):
  return path.read_bytes().count(b'\n') if path.exists() else 0


def children(pid):
  """The worker processes of a process."""
  found = []
  for path in Path('/proc').glob('[0-9]*/stat'):
    try:
      if int(path.read_text().rpartition(')')[2].split()[1]) == pid:
        found.append(int(path.parent.name))
    except OSError:  # it has just ended
      continue
  return found


def alive(pid):
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False
