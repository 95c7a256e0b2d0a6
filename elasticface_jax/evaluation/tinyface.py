# SPDX-License-Identifier: Apache-2.0
"""TinyFace: identification of native low-resolution faces.

Each probe is searched for in a gallery of images of the same persons and of
distractors, photographs of strangers. Published are rates of rank 1, 5 and 20,
and mean average precision.
"""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
from scipy import io

from elasticface_jax.errors import InputError, first_line
from elasticface_jax.evaluation.identification import Identification, identify
from elasticface_jax.evaluation.templates import check_embeddings

_FOLDERS = ('Probe', 'Gallery_Match', 'Gallery_Distractor')
_RANKS = (1, 5, 20)
_SUFFIXES = ('.jpg', '.jpeg', '.png')
# File, names and persons of the published lists.
_LISTS = {
  'Probe': ('probe_img_ID_pairs.mat', 'probe_set', 'probe_ids'),
  'Gallery_Match': (
    'gallery_match_img_ID_pairs.mat',
    'gallery_set',
    'gallery_ids',
  ),
}
_DISTRACTOR = -1  # Person of a distractor.
_REMEDY = 'give the folder of TinyFace, or its Testing_Set'


# eq=False: arrays have no single truth value to compare by.
@dataclasses.dataclass(frozen=True, eq=False)
class TinyFace:
  """Probes and gallery of TinyFace.

  Attributes:
    folder: the folder that holds ``Probe`` and the other two.
    probes: name of each probe.
    probe_persons: person of each probe, int64.
    gallery: name of each entry, with its folder; the distractors come last.
    gallery_persons: person of each entry, int64; -1 for a distractor.
    remarks: lines for whatever a reader of the results must know.
  """

  folder: Path
  probes: list[str]
  probe_persons: np.ndarray
  gallery: list[str]
  gallery_persons: np.ndarray
  remarks: tuple[str, ...]

  @property
  def image_paths(self) -> list[str]:
    """Paths of the images to embed: the probes, then the gallery.

    They are crops that were detected but not aligned; there are no landmarks.
    """
    return [
      os.path.join(self.folder, name) for name in self.probes + self.gallery
    ]


def read_tinyface(folder: str | os.PathLike[str]) -> TinyFace:
  """Finds the images of TinyFace's test set.

  The folder, its ``Testing_Set`` or ``tinyface/Testing_Set`` holds ``Probe``,
  ``Gallery_Match`` and ``Gallery_Distractor``. Persons are those of the lists
  ``probe_img_ID_pairs.mat`` and ``gallery_match_img_ID_pairs.mat`` beside them,
  or, if neither is there, the numbers with which names begin: ``12_3.jpg`` is
  of person 12. Distractors are all images of their folder, sorted by name.

  Args:
    folder: the folder; that of aligned crops, if it has the same three folders.

  Returns:
    Names and persons.

  Raises:
    InputError: names the file or folder that is missing or has other content.

  Examples:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in 'Probe/7_1', 'Gallery_Match/7_2', 'Gallery_Distractor/a':
    ...   (folder / name).parent.mkdir()
    ...   (folder / f'{name}.jpg').touch()
    >>> tinyface = read_tinyface(folder)
    >>> print(tinyface.probes, tinyface.gallery_persons)
    ['Probe/7_1.jpg'] [ 7 -1]
  """
  folder = Path(folder)
  places = [folder, folder / 'Testing_Set', folder / 'tinyface' / 'Testing_Set']
  root = next((place for place in places if (place / 'Probe').is_dir()), None)
  if root is None:
    raise InputError(f'{folder}: there is no folder Probe; {_REMEDY}')
  files = {name: _images(root, name) for name in _FOLDERS}
  lists = {kind: root / name for kind, (name, *_) in _LISTS.items()}
  absent = [path for path in lists.values() if not path.is_file()]
  if len(absent) == 1:
    raise InputError(
      f'{absent[0]}: No such file, but there is the other list; add it, or '
      'remove both to take persons from the names of the images'
    )
  remarks = []
  found = {}
  for kind, path in lists.items():
    if absent:
      found[kind] = files[kind], _persons_of_names(root, files[kind])
      continue
    names, persons = _read_list(path, *_LISTS[kind][1:])
    names = [f'{kind}/{name}' for name in names]
    _check_there(path, names, set(files[kind]))
    if len(names) < len(files[kind]):
      remarks.append(
        f'{path.name} lists {len(names):,} of the {len(files[kind]):,} images '
        f'in {kind}; the others are left out'
      )
    found[kind] = names, persons
  if absent:
    remarks.append(
      f'persons are taken from the names of the images, as there is no '
      f'{absent[0].name} and no {absent[1].name}'
    )
  names, persons = found['Gallery_Match']
  distractors = files['Gallery_Distractor']
  return TinyFace(
    folder=root,
    probes=found['Probe'][0],
    probe_persons=found['Probe'][1],
    gallery=names + distractors,
    gallery_persons=np.append(persons, np.full(len(distractors), _DISTRACTOR)),
    remarks=tuple(remarks),
  )


def evaluate_tinyface(
  tinyface: TinyFace, embeddings: np.ndarray
) -> dict[str, Identification]:
  """Computes rank-1, -5 and -20 rates and mean average precision.

  Args:
    tinyface: from `read_tinyface`.
    embeddings: of ``tinyface.image_paths``, any float dtype, ``[n, D]``; may be
      a memory map. Norms do not matter. The full gallery of 157,871 entries of
      512 numbers takes 1 GiB, and 6e11 operations in float64: half a minute on
      two cores.

  Returns:
    The results by 'TinyFace'.

  Raises:
    InputError: as `identify`.

  Examples:
    >>> tinyface = TinyFace(
    ...   Path('Testing_Set'), ['Probe/7_1.jpg'], np.array([7]),
    ...   ['Gallery_Match/7_2.jpg', 'Gallery_Distractor/a.jpg'],
    ...   np.array([7, -1]), ())
    >>> z = np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
    >>> evaluate_tinyface(tinyface, z)['TinyFace'].rank_rate(1)[0]
    1.0

  References:
    Cheng, Zhu and Gong, ACCV 2018.
  """
  num = len(tinyface.probes)
  embeddings = check_embeddings(embeddings, num + len(tinyface.gallery))
  search = identify(
    embeddings[:num],
    tinyface.probe_persons,
    embeddings[num:],
    tinyface.gallery_persons,
    name='with distractors',
  )
  distractors = int(np.sum(tinyface.gallery_persons == _DISTRACTOR))
  remarks = [
    f'TinyFace: {distractors:,} of {len(tinyface.gallery):,} entries are '
    'distractors',
    *(f'TinyFace: {one}' for one in tinyface.remarks),
  ]
  return {'TinyFace': Identification((search,), _RANKS, remarks=tuple(remarks))}


def _images(root: Path, name: str) -> list[str]:
  """Lists the images of a folder, with its name, in the order of names."""
  try:
    found = sorted(
      entry.name
      for entry in os.scandir(root / name)
      if entry.name.lower().endswith(_SUFFIXES)
    )
  except OSError as error:
    raise InputError(f'{root / name}: {error.strerror}; {_REMEDY}') from error
  if not found:
    raise InputError(f'{root / name}: there is no image; {_REMEDY}')
  return [f'{name}/{one}' for one in found]


def _persons_of_names(root: Path, names: list[str]) -> np.ndarray:
  persons = []
  for name in names:
    match = re.match(r'(\d+)_', name.split('/')[-1])
    if not match:
      raise InputError(
        f'{root / name}: the name does not begin with a person, as 12_3.jpg; '
        'give the published lists, *_img_ID_pairs.mat, beside the folder'
      )
    persons.append(int(match[1]))
  return np.array(persons)


def _read_list(
  path: Path, names_key: str, persons_key: str
) -> tuple[list[str], np.ndarray]:
  """Reads a list of names and persons from a file of MATLAB."""
  try:
    content = io.loadmat(path)
    names = [
      str(np.asarray(one).item()) for one in np.ravel(content[names_key])
    ]
    persons = np.ravel(content[persons_key]).astype(np.int64)
  # Damaged files raise whatever their bytes lead to.
  except Exception as error:
    raise InputError(
      f'{path}: no list of {names_key} and {persons_key} '
      f'({first_line(error)}); give the published file'
    ) from error
  if len(names) != len(persons) or not names or (persons < 0).any():
    raise InputError(
      f'{path}: {len(names)} names and {len(persons)} persons, which must be '
      'as many and not negative; give the published file'
    )
  return names, persons


def _check_there(path: Path, names: list[str], there: set[str]) -> None:
  if len(set(names)) < len(names):
    seen: set[str] = set()
    twice = next(one for one in names if one in seen or seen.add(one))
    raise InputError(f'{path} has {twice} twice; give the published file')
  missing = [name for name in names if name not in there]
  if missing:
    raise InputError(
      f'{path.parent / missing[0]} is missing, the first of {len(missing):,} '
      f'images of {path.name} that are; add them'
    )
