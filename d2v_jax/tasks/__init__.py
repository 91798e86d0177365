"""What is trained and how it is judged: an objective for the train step, and evaluators for the loop."""

from d2v_jax.tasks.ctc import Transcription
from d2v_jax.tasks.pretrain import Pretrain
from d2v_jax.tasks.sentence import Sentences

TASKS = {'pretrain': Pretrain, 'ctc': Transcription, 'sentence': Sentences}
