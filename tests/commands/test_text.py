"""Text as a user runs it: prepared, pretrained, fine-tuned on sentences and pairs, swept, evaluated, killed and resumed."""

import signal
import statistics

import jax
import numpy as np
import pytest

import d2v_jax
from d2v_jax.checkpoints import manager
from d2v_jax.checkpoints.manager import CheckpointManager
from d2v_jax.data.tokenizer import Tokenizer, read_tokenizer
from d2v_jax.errors import InputError
from d2v_jax.evaluate.sentence_metrics import scores
from d2v_jax.parallel import mesh as meshes
from d2v_jax.sweep import sweep
from d2v_jax.tasks import TASKS
from d2v_jax.train.step import abstract_state
from tests.commands.test_speech import KILLED
from tests.train import tiny, tiny_text

# Fields of the sweep's config: pairs, in batches of one length; evaluated after two steps and after the third.
PAIRS = {
  'data.text_columns': ('sentence', 'second'),
  'data.label_column': 'score',
  'data.bucket_tokens': (32,),
  'sentence.kind': 'regression',
  'sentence.metric': 'pearson_spearman',
  'total_steps': 3,
  'eval_every': 2,
}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Text, tables, and the sentences of dev.tsv without labels, from the last to the first."""
  root = tiny.make_text(tmp_path_factory.mktemp('text'))
  sentences = [row.split('\t')[0] for row in lines_of(root / 'dev.tsv')]
  (root / 'predict.tsv').write_text('\n'.join([sentences[0], *sentences[:0:-1]]) + '\n')
  return root


@pytest.fixture(scope='module')
def pretrained(corpus, tmp_path_factory):
  """A folder with `corpus`, which was prepared by hand, and `run`, a pretraining on it: moved when both were done."""
  root = tmp_path_factory.mktemp('pretrained')
  config, first = tiny_text.arguments('pretrain', '', '')[0], root / 'first'
  made = tiny.run('prepare', config, f'--config.data.source=folder:{corpus}', f'--output={first / "corpus"}')
  assert made.returncode == 0, made.stderr
  arguments = tiny_text.arguments('pretrain', f'prepared:{first / "corpus"}', first / 'run', '--config.pictures=True')
  done = tiny.run('main', *arguments)
  assert done.returncode == 0, done.stderr
  return first.rename(root / 'moved')


@pytest.fixture(scope='module')
def fine_tuning(corpus, pretrained):
  """The arguments of a classification of sentences from that pretraining, given a workdir."""
  # Another seed than that of the pretraining: nothing is alike by chance.
  more = (f'--config.init_from={pretrained / "run"}', '--config.seed=2', '--config.data.predict_file=predict.tsv')
  return lambda workdir, *overrides: tiny_text.arguments('sentence', f'tsv:{corpus}', workdir, *more, *overrides)


@pytest.fixture(scope='module')
def fine_tuned(fine_tuning, tmp_path_factory):
  """The workdir of that classification."""
  workdir = tmp_path_factory.mktemp('runs') / 'fine_tuned'
  done = tiny.run('main', *fine_tuning(workdir, '--config.pictures=True'))
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.fixture(scope='module')
def swept(corpus, pretrained, tmp_path_factory):
  """The folder of a sweep over two seeds and two learning rates, a regression on pairs; and what it printed."""
  folder = tmp_path_factory.mktemp('runs') / 'swept'
  fields = [f'--config.{name}={value}' for name, value in PAIRS.items()]
  more = (f'--config.init_from={pretrained / "run"}', '--seeds=1,2', '--learning_rates=1e-3,0.01')
  done = tiny.run('sweep', *tiny_text.arguments('sentence', f'tsv:{corpus}', folder, *fields, *more))
  assert done.returncode == 0, done.stderr
  return folder, done.stdout


def lines_of(path):
  return path.read_text().splitlines()


def column_of(path, name):
  header, *rows = (line.split('\t') for line in lines_of(path))
  return [row[header.index(name)] for row in rows]


def result_of(workdir):
  return tiny.json.loads((workdir / 'result.json').read_text())


def evaluation_of(workdir):
  return {name: value for name, value in result_of(workdir).items() if name.startswith('eval/')}


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# --- the chain


def test_pretraining(pretrained):
  result = result_of(pretrained / 'run')
  assert result['steps'] == 6 and np.isfinite(result['train/loss'])
  assert evaluation_of(pretrained / 'run').keys() == {
    *(f'eval/token_retrieval/{name}' for name in ('accuracy', 'untrained', 'frequency')),
    *(f'eval/position_retrieval/{name}' for name in ('accuracy', 'untrained')),
  }
  assert all(0 <= value < 1 for value in evaluation_of(pretrained / 'run').values())
  pictures = {path.name for path in (pretrained / 'run' / 'report').iterdir()}
  assert pictures == {'masks.png', 'retrieval.png', 'senses.png', 'curves.png'}


def test_evaluation_on_a_folder_prepares_the_same_tokens(corpus, pretrained, tmp_path):
  """By itself, in the cache; and the scores are those of the run on what was prepared by hand."""
  more = (f'--checkpoint={pretrained / "run"}', f'--config.data.cache={tmp_path / "cache"}')
  done = tiny.run('evaluate', *tiny_text.arguments('pretrain', f'folder:{corpus}', tmp_path / 'scores', *more))
  assert done.returncode == 0, done.stderr
  (cached,) = (tmp_path / 'cache').iterdir()
  for name in ('train.bin', 'test.bin', 'tokenizer.json'):
    assert (cached / name).read_bytes() == (pretrained / 'corpus' / name).read_bytes(), name
  assert tiny.json.loads(done.stdout.splitlines()[-1]) == evaluation_of(pretrained / 'run')


def test_the_tokenizer_travels_with_the_weights(pretrained, fine_tuned):
  config, assets = manager.load_meta(fine_tuned)
  assert Tokenizer.from_text(assets['tokenizer']).fingerprint == read_tokenizer(pretrained / 'corpus').fingerprint
  assert assets['labels'] == ['happy', 'sad']
  params, before = (manager.load_weights(path)[0]['encoder'] for path in (fine_tuned, pretrained / 'run'))
  assert config.model.depth == 1 and jax.tree.map(np.shape, params) == jax.tree.map(np.shape, before)
  # It starts from those weights: six small steps do not take it far from them.
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, before)
  assert max(jax.tree.leaves(moved)) < 1e-3
  assert min(moved['local_encoder']['token_embedding'], moved['block_0']['attention']['value']['kernel']) > 1e-6


def test_scores_are_those_of_the_predictions(corpus, fine_tuned, swept):
  predictions, labels = (column_of(fine_tuned / 'predictions_dev.tsv', name) for name in ('prediction', 'label'))
  assert column_of(fine_tuned / 'predictions_dev.tsv', 'line') == [str(2 + row) for row in range(30)]
  assert labels == column_of(corpus / 'dev.tsv', 'label') and set(predictions) == {'happy', 'sad'}
  numbers = lambda names: np.array([('happy', 'sad').index(name) for name in names])
  found = scores('classification', numbers(predictions), numbers(labels), 2)
  assert evaluation_of(fine_tuned) == {f'eval/{name}': found[name] for name in found} | {'eval/score': found['accuracy']}
  folders = [path for path in swept[0].iterdir() if path.is_dir()]
  for folder in folders:
    predictions, labels = (
      np.array(column_of(folder / 'predictions_dev.tsv', name), np.float32) for name in ('prediction', 'label')
    )
    assert labels.tolist() == list(map(float, column_of(corpus / 'dev.tsv', 'score')))
    found = scores('regression', predictions, labels, 0)
    expected = found | {'score': (found['pearson'] + found['spearman']) / 2}
    # The predictions in the file are rounded.
    assert evaluation_of(folder) == pytest.approx({f'eval/{name}': expected[name] for name in expected}, abs=2e-3)
  assert len(folders) == 4


def test_a_table_without_labels(corpus, fine_tuned):
  """The same sentences from the last to the first get the same predictions; so they do in the user's own program."""
  predictions = column_of(fine_tuned / 'predictions_dev.tsv', 'prediction')
  header, *_ = lines_of(fine_tuned / 'predictions_predict.tsv')
  assert header == 'line\tprediction'
  assert column_of(fine_tuned / 'predictions_predict.tsv', 'prediction') == predictions[::-1]
  assert d2v_jax.load(fine_tuned).classify(column_of(corpus / 'dev.tsv', 'sentence')) == predictions


def test_evaluation_by_itself_finds_the_same(fine_tuned, fine_tuning, tmp_path):
  done = tiny.run('evaluate', *fine_tuning(tmp_path / 'scores', f'--checkpoint={fine_tuned}', '--config.pictures=True'))
  assert done.returncode == 0, done.stderr
  assert tiny.json.loads(done.stdout.splitlines()[-1]) == evaluation_of(fine_tuned)
  assert tiny.json.loads((tmp_path / 'scores' / 'evaluation.json').read_text()) == evaluation_of(fine_tuned)
  for name in ('predictions_dev.tsv', 'predictions_predict.tsv'):
    assert (tmp_path / 'scores' / name).read_bytes() == (fine_tuned / name).read_bytes()
  for workdir in (fine_tuned, tmp_path / 'scores'):
    assert {path.name for path in (workdir / 'report').iterdir()} == {'curves.png'}


def test_sweep(swept):
  folder, printed = swept
  found = tiny.json.loads((folder / 'sweep.json').read_text())
  assert tiny.json.loads(printed.splitlines()[-1]) == found and found['metric'] == 'eval/score'
  finals = {}
  for run in found['runs']:
    workdir = folder / f'learning_rate_{run["learning_rate"]:g}_seed_{run["seed"]}'
    values = [row['eval/score'] for row in tiny.metrics(workdir) if 'eval/score' in row]
    assert len(values) == 2 and values[-1] == result_of(workdir)['eval/score']
    assert (run['final'], run['highest'], run['lowest']) == (values[-1], max(values), min(values))
    config = tiny.json.loads((workdir / 'config.json').read_text())
    assert (config['learning_rate'], config['seed']) == (run['learning_rate'], run['seed'])
    finals.setdefault(f'{run["learning_rate"]:g}', []).append(values[-1])
  assert found['medians'] == {rate: statistics.median(values) for rate, values in finals.items()}
  assert list(finals) == ['0.001', '0.01'] and len({*finals['0.001'], *finals['0.01']}) == 4
  for rate, median in found['medians'].items():
    assert f'learning rate {rate}: median {median:.4f} of' in printed


def test_a_finished_sweep_trains_nothing(corpus, pretrained, swept):
  """Other metrics of its runs can be asked for; one that there is not is refused."""
  folder, before = swept[0], contents(swept[0])
  config = tiny_text.get_config('sentence')
  config.update(init_from=str(pretrained / 'run'))
  config.data.source = f'tsv:{corpus}'
  config.update_from_flattened_dict(PAIRS)
  again = lambda metric: sweep(config, folder, [1, 2], [1e-3, 0.01], metric)
  with pytest.raises(InputError, match=r'--metric: no evaluation has eval/accuracy; .*result\.json has those there are'):
    again('eval/accuracy')
  again('eval/score')
  assert contents(folder) == before
  for run in again('eval/pearson')['runs']:
    workdir = folder / f'learning_rate_{run["learning_rate"]:g}_seed_{run["seed"]}'
    assert run['final'] == result_of(workdir)['eval/pearson']


# --- killed


@pytest.mark.parametrize(
  ('task', 'wait'),
  [
    pytest.param('pretrain', True, marks=pytest.mark.slow, id='pretraining'),
    pytest.param('sentence', False, id='fine-tuning'),
  ],
)
def test_killed_run_resumes_to_the_same_bits(corpus, pretrained, fine_tuned, fine_tuning, tmp_path, task, wait):
  """With dropout, masks and skipped layers; texts in batches of two lengths; pretraining on what is prepared by itself."""
  workdir = tmp_path / 'run'
  if task == 'pretrain':
    whole = pretrained / 'run'
    arguments = tiny_text.arguments(task, f'folder:{corpus}', workdir, f'--config.data.cache={tmp_path / "cache"}')
  else:
    whole, arguments = fine_tuned, fine_tuning(workdir)
  (tmp_path / 'script.py').write_text(KILLED.format(wait=wait))
  died = tiny.run(tmp_path / 'script.py', *arguments)
  assert died.returncode == -signal.SIGKILL, died.stderr
  assert not (workdir / 'result.json').exists()
  done = tiny.run('main', *arguments)
  assert done.returncode == 0, done.stderr
  assert f'Resuming {workdir} at step {4 if wait else ""}' in done.stderr
  shapes = {line.rpartition(' of ')[2] for line in (died.stderr + done.stderr).splitlines() if 'Compiled the step' in line}
  assert shapes == ({'4 x 24'} if task == 'pretrain' else {'4 x 16', '4 x 32'})
  assert final_state(workdir, task) == final_state(whole, task)
  assert tiny.metrics(workdir) == tiny.metrics(whole)
  assert evaluation_of(workdir) == evaluation_of(whole)


def final_state(workdir, task):
  """The newest state, by name, as bytes."""
  config = tiny_text.get_config(task)
  expected = abstract_state(TASKS[task].objective_of(config), config, meshes.build(config, jax.devices()[:1]))
  checkpoints = CheckpointManager(workdir, config)
  state = checkpoints.restore_latest(expected)
  checkpoints.close()
  return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(state)}


# --- elsewhere


@pytest.mark.parametrize('task', ['pretrain', pytest.param('sentence', marks=pytest.mark.slow)])
def test_two_devices_have_the_losses_of_one(pretrained, fine_tuned, fine_tuning, tmp_path, task):
  if task == 'pretrain':
    whole, arguments = pretrained / 'run', tiny_text.arguments(task, f'prepared:{pretrained / "corpus"}', tmp_path / 'run')
  else:
    whole, arguments = fine_tuned, [*fine_tuning(tmp_path / 'run'), '--config.data.predict_file=']
  done = tiny.run('main', *arguments, '--config.eval_every=0', devices=2)
  assert done.returncode == 0, done.stderr
  assert '6 steps on 2 devices' in done.stderr
  expected = [row for row in tiny.metrics(whole) if 'train/loss' in row]
  found = tiny.metrics(tmp_path / 'run')
  assert [row['step'] for row in found] == [row['step'] for row in expected] == list(range(1, 7))
  for name in ('train/loss', 'train/grad_norm'):
    np.testing.assert_allclose([row[name] for row in found], [row[name] for row in expected], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('task', ['pretrain', 'sentence'])
def test_benchmark_counts_tokens(corpus, pretrained, task):
  """Fine-tuning without a tokenizer: the pipeline reads tokens made on the spot."""
  source = f'prepared:{pretrained / "corpus"}' if task == 'pretrain' else f'tsv:{corpus}'
  config, _, source_field = tiny_text.arguments(task, source, '')
  done = tiny.run('benchmark', config, source_field, '--steps=1', '--pipeline_seconds=0.1')
  assert done.returncode == 0, done.stderr
  found = tiny.json.loads(done.stdout.splitlines()[-1])
  assert found['tokens_per_second'] == 4 * (24 if task == 'pretrain' else 32) / found['step_seconds']
  assert found['pipeline_examples_per_second'] > 0 and found['model_flops_per_step'] > 0
  assert found['pipeline_source'] == (source if task == 'pretrain' else 'generated tokens')
  assert 'tokens_per_second' in done.stdout.rpartition('{')[0]
