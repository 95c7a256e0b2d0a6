# SPDX-License-Identifier: Apache-2.0
"""Report of an inspection: as text, as JSON and as a figure."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from elasticface_jax import atomic
from elasticface_jax.data.sources.encoded import counted

MAX_LINES = 20  # Problems and notes that are printed; all are counted.


@dataclasses.dataclass(frozen=True)
class Report:
  """Findings of an inspection.

  Attributes:
    title: the path that was inspected.
    facts: name and value, in the order of printing.
    problems: what must be repaired before training, one line each; only the
      first ones.
    num_problems: number of all problems; 0 if the data are sound.
    notes: what is worth knowing, one line each; only the first ones.
    images_per_class: int64, ``[classes with images]``; empty for pairs.
  """

  title: str
  facts: dict[str, str]
  problems: list[str]
  num_problems: int
  notes: list[str] = dataclasses.field(default_factory=list)
  images_per_class: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros(0, np.int64)
  )

  @property
  def ok(self) -> bool:
    """Returns True if there are no problems."""
    return self.num_problems == 0

  def as_dict(self) -> dict:
    """Returns the report for JSON.

    There, ``images_per_class`` maps a number of images to the number of classes
    that have so many.
    """
    sizes, classes = np.unique(self.images_per_class, return_counts=True)
    return dataclasses.asdict(self) | {
      'ok': self.ok,
      'images_per_class': dict(
        zip(map(str, sizes), classes.tolist(), strict=True)
      ),
    }

  def __str__(self):
    width = max(map(len, self.facts))
    lines = [self.title]
    lines += [f'  {name:{width}}  {text}' for name, text in self.facts.items()]
    lines += [f'  note: {note}' for note in self.notes]
    lines += [f'  bad: {problem}' for problem in self.problems]
    if more := self.num_problems - len(self.problems):
      lines.append(f'  bad: ... {more:,} more')
    problems = counted(self.num_problems, 'problem')
    lines.append('ok' if self.ok else f'BAD: {problems}')
    return '\n'.join(lines)


def write_report(report: Report, folder: str | os.PathLike) -> None:
  """Writes ``inspection.json`` and ``images_per_class.png`` into a folder.

  Args:
    report: from an inspection. Without classes there is no figure.
    folder: made if it is missing; files of these names are replaced.

  Raises:
    InputError: if a file cannot be written.
  """
  from elasticface_jax.data.tools import plots  # Matplotlib takes a second.

  folder = Path(folder)
  atomic.make_folder(folder, 'give a folder for the report')
  text = json.dumps(report.as_dict(), indent=1)
  with atomic.file(folder / 'inspection.json') as part:
    part.write_text(text)
  if len(report.images_per_class):
    plots.plot_images_per_class(
      report.images_per_class,
      Path(report.title).name,
      folder / 'images_per_class.png',
    )
