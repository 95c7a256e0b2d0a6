# SPDX-License-Identifier: Apache-2.0
"""Files of MegaFace challenge 1: lists of images, noises and features.

Probes are photographs of FaceScrub's persons, distractors those of strangers.
The layouts are those of the challenge's devkit and of insightface's test pack.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np

from elasticface_jax.errors import InputError

_LISTS = ('facescrub_lst', 'megaface_lst')
_JSON = 'facescrub_features_list.json', 'megaface_features_list.json'
_TEMPLATE_LISTS = ('devkit/templatelists', 'templatelists', '.')
_REMEDY = (
  "give the folder of insightface's test pack, with facescrub_lst and "
  "megaface_lst, or of the devkit's templatelists"
)
# rows, columns, bytes of a number and the type CV_32F of OpenCV.
_HEADER = np.dtype('<i4')


# eq=False: arrays have no single truth value to compare by.
@dataclasses.dataclass(frozen=True, eq=False)
class MegaFace:
  """Probes and distractors of MegaFace.

  Attributes:
    folder: the folder that was read.
    probes: path of each probe in ``facescrub_images``, N of them.
    persons: person of each probe, from 0, int64, ``[N]``.
    distractors: path of each distractor in ``megaface_images``, M of them.
    sizes: places of the distractors of each published size, from 10 on.
    noisy_probes: True for a wrong person's photograph, bool, ``[N]``. None if
      there are no lists of noises.
    noisy_distractors: True for a photograph of a probe's person, ``[M]``.
    remarks: lines for whatever a reader of the results must know.
  """

  folder: Path
  probes: list[str]
  persons: np.ndarray
  distractors: list[str]
  sizes: dict[int, np.ndarray]
  noisy_probes: np.ndarray | None
  noisy_distractors: np.ndarray | None
  remarks: tuple[str, ...]

  @property
  def image_paths(self) -> list[str]:
    """Paths of the images to embed: the probes, then the distractors.

    They are aligned crops, so there are no landmarks.
    """
    return [
      os.path.join(self.folder, images, name)
      for images, names in (
        ('facescrub_images', self.probes),
        ('megaface_images', self.distractors),
      )
      for name in names
    ]


def read_megaface(folder: str | os.PathLike[str]) -> MegaFace:
  """Reads the lists of MegaFace challenge 1.

  Images are listed in ``facescrub_lst`` and ``megaface_lst``, a path in each
  line, or else in the devkit's ``facescrub_features_list.json`` and
  ``megaface_features_list.json_1000000_1``. The devkit's lists of 10 to 100,000
  distractors are taken if they are there; otherwise those are the first of the
  list. ``facescrub_noises.txt`` and ``megaface_noises.txt``, both or none, name
  the images of the refined benchmark that are wrong.

  Args:
    folder: the folder; the devkit's lists may be in ``devkit/templatelists``.

  Returns:
    Names, persons and noises.

  Raises:
    InputError: names the file if one is missing or has other content, an image
      is listed twice, or no person has two probes.

  Examples:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> probes = 'ann/1.png', 'ann/2.png', 'bob/1.png', 'bob/2.png'
    >>> _ = (folder / 'facescrub_lst').write_text(os.linesep.join(probes))
    >>> _ = (folder / 'megaface_lst').write_text('1/2@N00/3.jpg')
    >>> megaface = read_megaface(folder)
    >>> print(megaface.persons, megaface.distractors)
    [0 0 1 1] ['1/2@N00/3.jpg']
  """
  folder = Path(folder)
  if any((folder / name).is_file() for name in _LISTS):
    probes, distractors = (_read_lines(folder / name) for name in _LISTS)
    persons = [_person(folder / _LISTS[0], probe) for probe in probes]
  else:
    probes, persons = _read_json(_find_json(folder, _JSON[0]), ids=True)
    distractors, _ = _read_json(_find_json(folder, _JSON[1]))
  for name, images in zip(_LISTS, (probes, distractors), strict=True):
    _check_unique(folder, name, images)
  _, numbers = np.unique(persons, return_inverse=True)
  if np.bincount(numbers).max() < 2:
    raise InputError(
      f'{folder}: no person has two probes, so none has a mate; {_REMEDY}'
    )
  sizes, remarks = _sizes(folder, distractors)
  noisy_probes, noisy_distractors, found = _noises(folder, probes, distractors)
  return MegaFace(
    folder=folder,
    probes=probes,
    persons=numbers,
    distractors=distractors,
    sizes=sizes,
    noisy_probes=noisy_probes,
    noisy_distractors=noisy_distractors,
    remarks=(*remarks, *found),
  )


def read_feature(path: str | os.PathLike[str]) -> np.ndarray:
  """Reads a feature file of the devkit: a column of OpenCV as bytes.

  Args:
    path: the file: four int32, D, 1, 4 and 5, and D float32.

  Returns:
    float32, ``[D]``.

  Raises:
    InputError: if the file is missing or has other content.

  Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), 'a.bin')
    >>> header = np.array([2, 1, 4, 5], '<i4').tobytes()
    >>> _ = path.write_bytes(header + np.array([0.5, 1], '<f4').tobytes())
    >>> print(read_feature(path))
    [0.5 1. ]
  """
  try:
    data = Path(path).read_bytes()
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}; {_REMEDY}') from error
  header = np.frombuffer(data[:16], _HEADER) if len(data) >= 16 else []
  if list(header[1:]) != [1, 4, 5] or len(data) != 16 + 4 * header[0]:
    raise InputError(
      f"{path}: {len(data)} bytes are no feature file of MegaFace's devkit; "
      'expected four int32, D, 1, 4 and 5, and D float32'
    )
  return np.frombuffer(data, '<f4', offset=16)


def read_features(
  megaface: MegaFace, folder: str | os.PathLike[str], ending: str
) -> np.ndarray:
  """Reads embeddings from feature files, as the devkit's experiments do.

  Args:
    megaface: from `read_megaface`.
    folder: holds ``facescrub`` and ``megaface``, with the features of image
      ``a/b`` in ``a/b`` and the ending.
    ending: such as ``_r100.bin``.

  Returns:
    float32, ``[N + M, D]``, in the order of ``megaface.image_paths``.

  Raises:
    InputError: names the first file that is missing or has another size.
  """
  paths = [
    os.path.join(folder, kind, *name.split('/')[-depth:]) + ending
    for kind, depth, names in (
      ('facescrub', 2, megaface.probes),
      ('megaface', 3, megaface.distractors),
    )
    for name in names
  ]
  size = len(read_feature(paths[0]))
  features = np.empty((len(paths), size), np.float32)
  for row, path in zip(features, paths, strict=True):
    feature = read_feature(path)
    if len(feature) != size:
      raise InputError(
        f'{path}: {len(feature)} numbers, but {paths[0]} has {size}; features '
        'must be of one network'
      )
    row[:] = feature
  return features


def _read_lines(path: Path) -> list[str]:
  try:
    text = path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', 'not UTF-8 text')
    raise InputError(f'{path}: {reason}; {_REMEDY}') from error
  lines = [line.strip() for line in text.splitlines()]
  return [line for line in lines if line and not line.startswith('#')]


def _person(path: Path, probe: str) -> str:
  parts = probe.split('/')
  if len(parts) < 2:
    raise InputError(
      f'{path}: {probe} is in no folder; expected person/image in each line'
    )
  return parts[-2]


def _find_json(folder: Path, name: str) -> Path:
  """Finds a list of the devkit; of distractors, the longest."""
  found = {
    int(match[1] or 0): path
    for place in _TEMPLATE_LISTS
    for path in sorted((folder / place).glob(f'{name}*'))
    if (match := re.fullmatch(rf'{re.escape(name)}(?:_(\d+)_1)?', path.name))
  }
  if not found:
    raise InputError(
      f'{folder}: there is no facescrub_lst, and no {name}; {_REMEDY}'
    )
  return found[max(found)]


def _read_json(path: Path, ids: bool = False) -> tuple[list[str], list]:
  """Reads paths, and ids if asked."""
  try:
    content = json.loads(path.read_text())
    paths, persons = content['path'], content['id'] if ids else []
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}; {_REMEDY}') from error
  except (ValueError, KeyError, TypeError) as error:
    keys = '"path" and "id"' if ids else '"path"'
    raise InputError(
      f'{path}: no JSON with lists {keys}; give the list of the devkit'
    ) from error
  if ids and len(paths) != len(persons):
    raise InputError(
      f'{path}: {len(paths)} paths and {len(persons)} ids; give the list of '
      'the devkit'
    )
  return [str(one) for one in paths], [str(one) for one in persons]


def _check_unique(folder: Path, name: str, images: list[str]) -> None:
  if not images:
    raise InputError(f'{folder}: {name} has no images; {_REMEDY}')
  if len(set(images)) < len(images):
    seen: set[str] = set()
    twice = next(one for one in images if one in seen or seen.add(one))
    raise InputError(
      f'{folder}: {name} has {twice} twice; remove one, or it would count twice'
    )


def _sizes(
  folder: Path, distractors: list[str]
) -> tuple[dict[int, np.ndarray], list[str]]:
  """Finds the distractors of each size: 10, 100, ... and all."""
  total = len(distractors)
  powers = [10**k for k in range(1, 7) if 10**k < total]
  sizes, taken = {}, []
  place: dict[str, int] = {}
  for size in powers:
    path = next(
      (
        path
        for one in _TEMPLATE_LISTS
        if (path := folder / one / f'{_JSON[1]}_{size}_1').is_file()
      ),
      None,
    )
    if path is None:
      sizes[size] = np.arange(size)
      taken.append(f'{size:,}')
      continue
    place = place or {_tail(name, 3): k for k, name in enumerate(distractors)}
    names, _ = _read_json(path)
    unknown = [name for name in names if _tail(name, 3) not in place]
    if unknown:
      raise InputError(
        f'{path}: {unknown[0]} is not in the list of {total:,} distractors, '
        f'the first of {len(unknown)} such; give lists of one benchmark'
      )
    sizes[size] = np.array([place[_tail(name, 3)] for name in names])
  sizes[total] = np.arange(total)
  remarks = [
    f'the first {", ".join(taken)} of the list are the smaller sets of '
    "distractors, as the devkit's lists of them are not there"
  ] * bool(taken)
  return sizes, remarks


def _noises(
  folder: Path, probes: list[str], distractors: list[str]
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
  """Marks the noisy images, or says that the lists are missing."""
  paths = [folder / f'{kind}_noises.txt' for kind in ('facescrub', 'megaface')]
  absent = [path for path in paths if not path.is_file()]
  if len(absent) == 2:
    return None, None, [
      f'no refined results, as there is no {absent[0].name} and no '
      f'{absent[1].name}'
    ]  # fmt: skip
  if absent:
    raise InputError(
      f'{absent[0]}: No such file, but there is the other list of noises; add '
      'it, or remove both'
    )
  marks, remarks = [], []
  for path, names, depth in zip(
    paths, (probes, distractors), (1, 3), strict=True
  ):
    # A line may be `number<TAB>name`.
    noisy = {_tail(line.split('\t')[-1], depth) for line in _read_lines(path)}
    marks.append(np.array([_tail(name, depth) in noisy for name in names]))
    remarks.append(
      f'{path.name}: {int(marks[-1].sum()):,} of its {len(noisy):,} names are '
      f'among the {len(names):,} listed images'
    )
  return marks[0], marks[1], remarks


def _tail(name: str, depth: int) -> str:
  return '/'.join(name.split('/')[-depth:])
