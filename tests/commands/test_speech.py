"""Speech as a user runs it: pretrained, fine-tuned with CTC, evaluated, killed and resumed, extracted and transcribed."""

import signal

import jax
import numpy as np
import pytest
import soundfile

import d2v_jax
from d2v_jax.checkpoints import manager
from d2v_jax.checkpoints.manager import CheckpointManager
from d2v_jax.data import audio, letters
from d2v_jax.evaluate.error_rates import error_rate
from d2v_jax.parallel import mesh as meshes
from d2v_jax.tasks import TASKS
from d2v_jax.train.step import abstract_state
from tests.train import tiny, tiny_speech

# Not the sizes of the checkpoint: its own win.
OTHER_SIZES = ('--config.model.embed_dim=32', '--config.model.depth=3', '--config.model.conv_positions.layers=2')
KILLED = """
import os, signal
from d2v_jax import cli, main
from d2v_jax.checkpoints.manager import CheckpointManager

save = CheckpointManager.save

def save_and_die(self, state, wait=False):
  save(self, state, wait={wait})
  if int(state.step) == 4:
    os.kill(os.getpid(), signal.SIGKILL)

CheckpointManager.save = save_and_die
if __name__ == '__main__':
  cli.run(main.main)
"""


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  return tiny.make_speech(tmp_path_factory.mktemp('clips'))


@pytest.fixture(scope='module')
def pretrained(clips, tmp_path_factory):
  """The workdir of a pretraining."""
  workdir = tmp_path_factory.mktemp('runs') / 'pretrained'
  done = tiny.run('main', *tiny.speech_arguments('pretrain', f'folder:{clips}', workdir, '--config.pictures=True'))
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.fixture(scope='module')
def fine_tuning(clips, pretrained):
  """The arguments of a fine-tuning from it, given a workdir."""
  return lambda workdir: tiny.speech_arguments(
    'ctc', f'folder:{clips}', workdir, f'--config.init_from={pretrained}', *OTHER_SIZES
  )


@pytest.fixture(scope='module')
def fine_tuned(fine_tuning, tmp_path_factory):
  """The workdir of that fine-tuning."""
  workdir = tmp_path_factory.mktemp('runs') / 'fine_tuned'
  done = tiny.run('main', *fine_tuning(workdir))
  assert done.returncode == 0, done.stderr
  return workdir


def result_of(workdir):
  return tiny.json.loads((workdir / 'result.json').read_text())


def clip_shapes(stderr):
  return {line.rpartition(' x ')[2] for line in stderr.splitlines() if 'Compiled the step for batches of' in line}


# --- the chain


def test_pretraining(clips, pretrained):
  result = result_of(pretrained)
  assert result['steps'] == 6 and np.isfinite(result['train/loss'])
  # Clips that fill no batch are left out and counted.
  assert {name: result[name] for name in result if name.startswith('data/')} == {
    'data/unreadable': 0,
    'data/dropped/too_short': 4,
  }
  assert {path.name for path in (pretrained / 'report').iterdir()} == {'masks.png', 'feature_maps.png', 'curves.png'}


def test_fine_tuning_takes_the_architecture_of_its_checkpoint(pretrained, fine_tuned):
  params, _, config = manager.load_weights(fine_tuned)
  before, _, pretraining = manager.load_weights(pretrained)
  shapes = lambda tree: jax.tree.map(np.shape, tree)
  assert shapes(params['encoder']) == shapes(before['encoder'])
  assert config.model.embed_dim == pretraining.model.embed_dim == 16
  # The frozen convolutions are those of the checkpoint, what comes after them has learned.
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params['encoder'], before['encoder'])
  for number in range(3):
    assert moved['local_encoder'][f'conv_{number}']['kernel'] == moved['local_encoder'][f'norm_{number}']['scale'] == 0
  for part in (moved['local_encoder']['projection'], moved['block_0']):
    assert max(jax.tree.leaves(part)) > 1e-4


def test_scores_are_those_of_the_hypotheses(clips, fine_tuned):
  result = result_of(fine_tuned)
  assert {name: result[name] for name in result if name.startswith('data/')} == {
    'data/unreadable': 0,
    'data/dropped/too_long': 4,
  }
  assert result['eval/utterances'] == 5 and result['eval/unreadable'] == 0
  header, *rows = (line.split('\t') for line in (fine_tuned / 'hypotheses.tsv').read_text().splitlines())
  rows = [dict(zip(header, row, strict=True)) for row in rows]
  files = sorted((clips / 'val').glob('[0-9]*[!t]'))
  assert [row['name'] for row in rows] == list(map(str, files))
  assert [row['reference'] for row in rows] == [letters.normalise(path.with_suffix('.txt').read_text()) for path in files]
  references, hypotheses = ([row[name] for row in rows] for name in ('reference', 'hypothesis'))
  words = lambda texts: [text.split() for text in texts]
  assert result['eval/wer'] == error_rate(words(references), words(hypotheses))
  assert result['eval/cer'] == error_rate(references, hypotheses)
  edits = sum(int(row[kind]) for row in rows for kind in ('substitutions', 'deletions', 'insertions'))
  assert result['eval/wer'] == edits / sum(int(row['words']) for row in rows)
  assert result['train/infeasible'] == 0


def test_evaluation_by_itself_finds_the_same(fine_tuned, fine_tuning, tmp_path):
  """Of the workdir's checkpoint, or of one in another place; beam search and pictures on demand."""
  result = {name: value for name, value in result_of(fine_tuned).items() if name.startswith('eval/')}
  more = ('--config.eval.beam_width=4', '--config.pictures=True')
  done = tiny.run('evaluate', *fine_tuning(tmp_path / 'scores'), f'--checkpoint={fine_tuned}', *more)
  assert done.returncode == 0, done.stderr
  scores = tiny.json.loads(done.stdout.splitlines()[-1])
  assert scores == tiny.json.loads((tmp_path / 'scores' / 'evaluation.json').read_text())
  assert scores.keys() - result.keys() == {'eval/wer_beam', 'eval/cer_beam'}
  assert {name: scores[name] for name in result} == result
  tables = [path / 'hypotheses.tsv' for path in (tmp_path / 'scores', fine_tuned)]
  assert tables[0].read_bytes() == tables[1].read_bytes()
  assert len((tmp_path / 'scores' / 'hypotheses_beam.tsv').read_text().splitlines()) == 6
  assert {path.name for path in (tmp_path / 'scores' / 'report').iterdir()} == {'emissions.png', 'curves.png'}


def test_a_finished_run_says_so(fine_tuned, fine_tuning):
  contents = lambda: {path: path.read_bytes() for path in fine_tuned.rglob('*') if path.is_file()}
  before = contents()
  done = tiny.run('main', *fine_tuning(fine_tuned))
  assert done.returncode == 0, done.stderr
  assert 'This run is complete: 6 steps' in done.stderr and str(fine_tuned / 'result.json') in done.stderr
  assert contents() == before


def test_transcripts_are_the_hypotheses(clips, fine_tuned):
  """The model in the user's own program hears what the evaluation heard."""
  model = d2v_jax.load(fine_tuned)
  header, *rows = (line.split('\t') for line in (fine_tuned / 'hypotheses.tsv').read_text().splitlines())
  waves = [audio.decode(row[0]) for row in rows]
  lengths = [len(wave) for wave in waves]
  batch = np.stack([np.pad(wave, (0, max(lengths) - len(wave))) for wave in waves])
  assert model.transcribe(batch, lengths) == [row[header.index('hypothesis')] for row in rows]


def test_extraction(clips, pretrained, tmp_path):
  done = tiny.run('extract', f'--checkpoint={pretrained}', f'--input={clips / "val"}', f'--output={tmp_path / "out.npz"}')
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / 'out.npz', allow_pickle=False) as found:
    files, features, times, starts = (found[name] for name in ('files', 'features', 'times', 'starts'))
  assert files.tolist() == [f'{number:02d}.{("wav", "flac")[number % 2]}' for number in range(5)]
  for number, name in enumerate(files):
    info = soundfile.info(clips / 'val' / name)
    frames = (info.frames * 16_000 // info.samplerate - 325) // 320 + 1
    rows = slice(starts[number], starts[number + 1])
    assert features[rows].shape == (frames, 16)
    np.testing.assert_allclose(times[rows], 325 / 2 / 16_000 + 0.02 * np.arange(frames), rtol=1e-12)
  assert starts[0] == 0 and starts[-1] == len(features) == len(times)


# --- killed


@pytest.mark.parametrize(
  ('task', 'wait'),
  [pytest.param('pretrain', True, marks=pytest.mark.slow, id='pretraining'), pytest.param('ctc', False, id='fine-tuning')],
)
def test_killed_run_resumes_to_the_same_bits(clips, pretrained, fine_tuned, fine_tuning, tmp_path, task, wait):
  """With dropout, masks and skipped layers, and batches of several shapes."""
  workdir = tmp_path / 'run'
  arguments = tiny.speech_arguments('pretrain', f'folder:{clips}', workdir) if task == 'pretrain' else fine_tuning(workdir)
  whole = pretrained if task == 'pretrain' else fine_tuned
  (tmp_path / 'script.py').write_text(KILLED.format(wait=wait))
  died = tiny.run(tmp_path / 'script.py', *arguments)
  assert died.returncode == -signal.SIGKILL, died.stderr
  assert not (workdir / 'result.json').exists()
  done = tiny.run('main', *arguments)
  assert done.returncode == 0, done.stderr
  assert f'Resuming {workdir} at step {4 if wait else ""}' in done.stderr
  assert len(clip_shapes(died.stderr + done.stderr)) == 2
  assert final_state(workdir, task) == final_state(whole, task)
  assert tiny.metrics(workdir) == tiny.metrics(whole)
  assert [row['step'] for row in tiny.metrics(workdir)][:6] == list(range(1, 7))
  untimed = lambda result: {name: result[name] for name in result if name not in tiny.TIMINGS}
  assert untimed(result_of(workdir)) == untimed(result_of(whole))


def final_state(workdir, task):
  """The newest state, by name, as bytes."""
  config = tiny_speech.get_config(task)
  expected = abstract_state(TASKS[task].objective_of(config), config, meshes.build(config, jax.devices()[:1]))
  checkpoints = CheckpointManager(workdir, config)
  state = checkpoints.restore_latest(expected)
  checkpoints.close()
  return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(state)}
