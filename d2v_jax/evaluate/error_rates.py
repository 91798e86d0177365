"""Word and character error rates: edit distances summed over a corpus, per summed length of the references."""

import numpy as np

from d2v_jax.report.writers import write_atomically


def edit_counts(reference, hypothesis) -> tuple[int, int, int]:
  """Counts (substitutions, deletions, insertions) of the cheapest way from one sequence of hashable items to another.

  Where several ways are equally cheap, the one with the most substitutions counts; their sum is the same for all.
  """
  numbers = {}
  reference, hypothesis = (
    np.array([numbers.setdefault(item, len(numbers)) for item in items], np.int64) for items in (reference, hypothesis)
  )
  # The cost is edits * unit + (deletions + insertions): it orders by edits first, and tells the kinds apart at the end.
  unit = len(reference) + len(hypothesis) + 1
  gap = unit + 1
  gaps = gap * np.arange(len(hypothesis) + 1)
  costs = gaps  # from the beginning of the reference seen so far to each beginning of the hypothesis
  for item in reference:
    without_insertion = costs + gap
    np.minimum(without_insertion[1:], costs[:-1] + unit * (hypothesis != item), out=without_insertion[1:])
    costs = np.minimum.accumulate(without_insertion - gaps) + gaps
  edits, unpaired = divmod(int(costs[-1]), unit)
  deletions = (unpaired + len(reference) - len(hypothesis)) // 2
  return edits - unpaired, deletions, unpaired - deletions


def error_rate(references, hypotheses) -> float:
  """Edits of a corpus per item of its references: 0.25 is one error in four, and more than 1 is possible.

  Args:
    references: one sequence an utterance. Words (`text.split()`) give the word error rate; characters, that is the strings
      with words one space apart, the character error rate.
    hypotheses: the same number of sequences, in the same order.

  An empty hypothesis deletes its whole reference; what is heard where a reference is empty is inserted. Where all references
  are empty, there is nothing to divide by, and the result is the number of insertions (as jiwer has it).

  Raises:
    ValueError: not as many hypotheses as references.
  """
  edits = sum(sum(edit_counts(*pair)) for pair in zip(references, hypotheses, strict=True))
  return edits / max(sum(map(len, references)), 1)


def write_hypotheses(path, rows) -> None:
  """Writes a table of (name, reference, hypothesis) rows with the edits of each, separated by tabs, under a header.

  Runs of white space (tabs, line breaks) become one space, so that each row is one line of seven columns.
  """
  lines = ['name\treference\thypothesis\twords\tsubstitutions\tdeletions\tinsertions']
  for row in rows:
    name, reference, hypothesis = (' '.join(str(text).split()) for text in row)
    words = reference.split()
    counts = [len(words), *edit_counts(words, hypothesis.split())]
    lines.append('\t'.join([name, reference, hypothesis, *map(str, counts)]))
  write_atomically(path, '\n'.join([*lines, '']).encode('utf-8', 'surrogateescape'))
