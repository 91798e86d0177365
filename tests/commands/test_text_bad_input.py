"""Text that is wrong: one line that names the field or file, what was found and the fix, and exit code 2."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from d2v_jax.checkpoints import manager
from d2v_jax.data.prepared import prepare
from d2v_jax.data.tokenizer import EOS, read_tokenizer, train_tokenizer
from d2v_jax.errors import InputError
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.train.loop import train_and_evaluate
from tests.train import tiny, tiny_text


def config_of(task, source, root, **fields):
  config = tiny_text.get_config(task)
  config.data.source = source
  if task == 'pretrain':
    config.data.cache = str(root / 'cache')
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A folder with what can be used, and what cannot.

  text: a corpus and tables of `tiny.make_text`; prepared: from them; cut: likewise, but train.bin lacks 100 bytes;
  other: another tokenizer of as many entries; letters: GPT-2's files with a dictionary of letters; image, large: models of
  images, and of text with another tokenizer, of 310 entries.
  """
  root = tmp_path_factory.mktemp('root')
  tiny.make_text(root / 'text')
  prepare(config_of('pretrain', f'folder:{root / "text"}', root), root / 'prepared')
  shutil.copytree(root / 'prepared', root / 'cut')
  (root / 'cut' / 'train.bin').write_bytes((root / 'prepared' / 'train.bin').read_bytes()[:-100])
  (root / 'other').mkdir()
  (root / 'other' / 'tokenizer.json').write_text(train_tokenizer(['other words, others and others'], 300).to_text())
  (root / 'letters').mkdir()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  (root / 'letters' / 'encoder.json').write_text(json.dumps({token: number for number, token in enumerate(alphabet)}))
  (root / 'letters' / 'vocab.bpe').write_text('#version: 0.2\n')
  (root / 'letters' / 'dict.txt').write_text('| 94802\nE 51860\nT 38431\n')
  large = config_of('pretrain', '', root, **{'model.vocab_size': 310})
  tokenizer = train_tokenizer(['large or larger'], 310).to_text()
  for name, config, assets in (('image', tiny.get_config(), {}), ('large', large, {'tokenizer': tokenizer})):
    manager.save_weights(root / name, tiny.random_params(Data2vec2(config), 0), None, config, assets)
  return root


def refusal(task, source, root, workdir, **fields):
  """The one line that `main` ends with, with exit code 2; nothing is left of a run that could not begin."""
  with pytest.raises(InputError) as caught:
    train_and_evaluate(config_of(task, source, root, **fields), workdir)
  assert '\n' not in str(caught.value) and not workdir.exists()
  return str(caught.value)


def says(text, *parts):
  for part in parts:
    assert str(part) in text, f'{part!r} is not in: {text}'


def table(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join('\t'.join(row) + '\n' for row in rows))
  return path


# --- corpora


@pytest.mark.parametrize(
  ('content', 'parts'),
  [
    (b'', ('config.data.source: folder:{path}', 'holds no text', 'empty')),
    (b' \n\t\n', ('config.data.source: folder:{path}', 'holds no text', 'white space')),
    (b'Good.\n' * 20_000 + b'Caf\xe9.', ('{path}/a.txt: byte 0xe9 at offset 120003', 'Latin-1', 'iconv -f LATIN1 -t UTF-8')),
    (b'Good.\n' * 20_000 + b'Bad\0.', ('{path}/a.txt: byte 0 at offset 120003', 'UTF-16', 'iconv')),
    (
      b'Good.\n' * 3,
      ('config.data.source: ', 'the train part has ', 'one block (23)', 'a smaller config.data.block_tokens'),
    ),
  ],
  ids=['empty', 'blank', 'latin-1', 'nul', 'short'],
)
def test_text_that_cannot_be_used(root, tmp_path, content, parts):
  path = tmp_path / 'bad'
  path.mkdir()
  (path / 'a.txt').write_bytes(content)
  text = refusal('pretrain', f'folder:{path}', tmp_path, tmp_path / 'run', eval_every=0)
  says(text, *(part.format(path=path) for part in parts))


@pytest.mark.parametrize(
  ('source', 'fields', 'parts'),
  [
    ('folder:{root}/prepared', {}, ('config.data.source: {root}/prepared holds no *.txt files',)),
    ('tsv:{root}/text', {}, ("config.data.source: 'tsv:{root}/text'", 'folder, prepared', 'for pretrain on text')),
    (
      'folder:{root}/text/train',
      {},
      ('config.data.source: ', 'no test part', 'config.data.holdout=0.1', 'config.eval_every=0'),
    ),
    ('folder:{root}/text', {'data.block_tokens': 400}, ('config.data.block_tokens: found 400', 'model.max_positions 96')),
    ('folder:{root}/text', {'model.vocab_size': 260}, ('config.model.vocab_size: 260', 'at least 261')),
    (
      'folder:{root}/text',
      {'data.block_tokens': 9000, 'model.max_positions': 9000},
      ('the train part has ', ' tokens, fewer than one block (8999)', 'a smaller config.data.block_tokens'),
    ),
    (
      'folder:{root}/text',
      {'data.tokenizer': '{root}/letters'},
      ("{root}/letters/dict.txt: line 1: '|' is no id of encoder.json", 'give the dict.txt that belongs to it'),
    ),
    (
      'prepared:{root}/cut',
      {},
      ('{root}/cut/train.bin: has ', ' bytes, prepared.json says ', 'restore it, or delete {root}/cut and prepare it again'),
    ),
    (
      'prepared:{root}/prepared',
      {'data.tokenizer': '{root}/other'},
      ('config.data.tokenizer: ', '{root}/other', 'prepared {root}/prepared', '300 entries, fingerprint ', 'prepare again'),
    ),
    (
      'prepared:{root}/prepared',
      {'model.vocab_size': 310},
      ('config.model.vocab_size: 310', 'a tokenizer of 300 entries; set config.model.vocab_size=300, or prepare again'),
    ),
    (
      'folder:{root}/text',
      {'init_from': '{root}/large'},
      ('config.model.vocab_size: 300', '{root}/large', '310 entries; set config.model.vocab_size=310'),
    ),
    (
      'folder:{root}/text',
      {'init_from': '{root}/large', 'data.tokenizer': '{root}/other'},
      (
        'config.data.tokenizer: {root}/other',
        'another tokenizer than that of config.init_from {root}/large',
        'leave it out',
      ),
    ),
    (
      'folder:{root}/text',
      {'init_from': '{root}/nowhere'},
      ('config.init_from: {root}/nowhere does not exist; give a checkpoint',),
    ),
    ('folder:{root}/text', {'init_from': '{root}/image'}, ('{root}/image: is a ',)),
  ],
)
def test_pretraining_that_cannot_work(root, tmp_path, source, fields, parts):
  fill = lambda value: value.format(root=root) if isinstance(value, str) else value
  fields = {name: fill(value) for name, value in fields.items()}
  says(refusal('pretrain', fill(source), tmp_path, tmp_path / 'run', **fields), *map(fill, parts))


# --- tables


@pytest.mark.parametrize(
  ('source', 'fields', 'parts'),
  [
    ('folder:{root}/text', {}, ("config.data.source: 'folder:{root}/text'", 'a KIND of tsv for sentence on text')),
    ('tsv:{root}/nowhere.tsv', {}, ('config.data.source: {root}/nowhere.tsv does not exist', "'text'")),
    ('tsv:{root}/text', {'data.test_files': ('test.tsv',)}, ('config.data.test_files: ', 'test.tsv does not', "'dev.tsv'")),
    (
      'tsv:{root}/text',
      {'data.predict_file': 'p.tsv'},
      ('config.data.predict_file: {root}/text/p.tsv does not', "'dev.tsv'"),
    ),
    (
      'tsv:{root}/text',
      {'data.predict_file': 'dev.tsv'},
      ("config.data.predict_file: 'dev.tsv'", 'predictions_dev', 'rename'),
    ),
    ('tsv:{root}/text/train.tsv', {}, ('config.data.source: ', 'no test part', 'holdout=0.1', 'config.eval_every=0')),
    (
      'tsv:{root}/text',
      {'data.label_column': 'lable'},
      ("config.data.label_column: {root}/text/train.tsv has no column 'lable'", "'score'; did you mean 'label'?"),
    ),
    (
      'tsv:{root}/text',
      {'data.text_columns': ('sentence', 'sentence2')},
      ("config.data.text_columns: {root}/text/train.tsv has only 'sentence' of the pair", "'sentence', 'second'"),
    ),
    ('tsv:{root}/text', {'data.bucket_tokens': (32, 16)}, ('config.data.bucket_tokens: found (32, 16)', 'ascending')),
    (
      'tsv:{root}/text',
      {'sentence.metric': 'pearson_spearman'},
      ("config.sentence.metric: 'pearson_spearman' does not score a classification", 'is for regression'),
    ),
    (
      'tsv:{root}/text',
      {'sentence.kind': 'regression'},
      ("config.sentence.metric: 'accuracy' does not score a regression; 'pearson_spearman' is",),
    ),
    (
      'tsv:{root}/text',
      {'sentence.kind': 'regression', 'sentence.metric': 'pearson_spearman'},
      ("{root}/text/train.tsv:2: the label (column 'label') is 'happy', not a finite number",),
    ),
    (
      'tsv:{root}/text',
      {'sentence.metric': 'f1', 'data.label_column': 'score'},
      ("config.sentence.metric: 'f1' is of two classes", 'tsv:{root}/text has 5', "use 'accuracy' or 'matthews'"),
    ),
    (
      'tsv:{root}/text',
      {'data.tokenizer': ''},
      ('config.data.tokenizer: missing; give a tokenizer, or with config.init_from the model',),
    ),
    (
      'tsv:{root}/text',
      {'data.tokenizer': '{root}/letters'},
      ("{root}/letters/dict.txt: line 1: '|' is no id of encoder.json", 'give the dict.txt that belongs to it'),
    ),
    (
      'tsv:{root}/text',
      {'init_from': '{root}/large'},
      ('config.data.tokenizer: {root}/prepared', 'than that of config.init_from {root}/large', 'leave it out'),
    ),
    (
      'tsv:{root}/text',
      {'init_from': '{root}/image'},
      ('{root}/image: is a model of image, config.modality is text; give another',),
    ),
  ],
)
def test_fine_tuning_that_cannot_work(root, tmp_path, source, fields, parts):
  fill = lambda value: value.format(root=root) if isinstance(value, str) else value
  fields = {'data.tokenizer': '{root}/prepared'} | fields
  fields = {name: fill(value) for name, value in fields.items()}
  says(refusal('sentence', fill(source), root, tmp_path / 'run', **fields), *map(fill, parts))


# --- as commands


def test_main(root, tmp_path):
  """The same lines, with exit code 2, and no traceback."""
  (tmp_path / 'bad.txt').write_bytes(b'Good.\nCaf\xe9.')
  arguments = tiny_text.arguments('pretrain', f'folder:{tmp_path / "bad.txt"}', tmp_path / 'run', '--config.eval_every=0')
  text = tiny.message(tiny.run('main', *arguments), 2)
  says(text, f'{tmp_path / "bad.txt"}: byte 0xe9 at offset 9', 'Latin-1', 'iconv -f LATIN1 -t UTF-8')
  table(tmp_path / 'tables' / 'train.tsv', ('sentence', 'label'), ('Good.', 'yes'), ('Bad.', 'no'))
  dev = table(tmp_path / 'tables' / 'dev.tsv', ('sentence', 'label'), ('Fine.', 'yes'), ('So so.', 'maybe'))
  tokenizer = f'--config.data.tokenizer={root / "prepared"}'
  arguments = tiny_text.arguments('sentence', f'tsv:{tmp_path / "tables"}', tmp_path / 'run', tokenizer)
  text = tiny.message(tiny.run('main', *arguments), 2)
  says(text, f"{dev}:3: the label (column 'label') is 'maybe', not one of those of the training: 'no', 'yes'")
  assert not (tmp_path / 'run').exists()


def test_sweeps_that_cannot_work(root, tmp_path):
  """A metric that no evaluation has: tests/commands/test_text.py."""
  arguments = tiny_text.arguments('sentence', f'tsv:{root / "text"}', tmp_path / 'run')
  text = tiny.message(tiny.run('sweep', *arguments, '--config.eval_every=0'), 2)
  says(text, 'config.eval_every: 0, so nothing would be measured; give the steps between evaluations')
  text = tiny.message(tiny.run('sweep', *arguments, '--seeds=1,two'), 2)
  says(text, "--seeds: found '1,two'; numbers with commas between them are needed")
  assert not (tmp_path / 'run').exists()


def test_preparations_that_cannot_work(root, tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('Mine.')
  config, source = tiny_text.arguments('pretrain', '', '')[0], f'--config.data.source=folder:{root / "text"}'
  text = tiny.message(tiny.run('prepare', config, source, f'--output={tmp_path / "mine"}'), 2)
  says(text, f'--output: {tmp_path / "mine"} holds something else (thesis.txt, ...); give a new folder')
  assert {path.name for path in (tmp_path / 'mine').iterdir()} == {'thesis.txt'}
  config = f'--config={tiny.ROOT / "tests" / "train" / "tiny.py"}'
  text = tiny.message(tiny.run('prepare', config, source, f'--output={tmp_path / "new"}'), 2)
  says(text, '--config: is one of pretrain on image', 'text')
  assert not (tmp_path / 'new').exists()


# --- large, but right


@pytest.mark.parametrize('trained', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['given', 'trained'])
def test_a_line_of_50_mb(root, tmp_path, trained):
  """With a tokenizer, or with one that is trained on the line."""
  again = ' The old teacher loves long walks, and a small dog enjoys the sea.'
  (tmp_path / 'line.txt').write_text(again * (50_000_000 // len(again)))
  fields = [f'--config.data.source=folder:{tmp_path / "line.txt"}']
  if not trained:
    fields.append(f'--config.data.tokenizer={root / "prepared"}')
  done = tiny.run('prepare', tiny_text.arguments('pretrain', '', '')[0], f'--output={tmp_path / "out"}', *fields)
  assert done.returncode == 0, done.stderr
  assert '1 documents, 1 sentences' in done.stdout
  tokenizer, stream = read_tokenizer(tmp_path / 'out'), np.fromfile(tmp_path / 'out' / 'train.bin', '<u2')
  first, rest = tokenizer.encode(again[1:]), tokenizer.encode(again)
  assert stream[: len(first)].tolist() == first.tolist() and stream[-2:].tolist() == [EOS, EOS]
  assert (stream[len(first) : -2].reshape(50_000_000 // len(again) - 1, len(rest)) == rest).all()
