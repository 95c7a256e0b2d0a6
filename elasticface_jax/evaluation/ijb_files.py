# SPDX-License-Identifier: Apache-2.0
"""Files of IJB-B and IJB-C, as they are published for PyTorch and MXNet.

Shapes: n images, T templates, P pairs of templates.
"""

import csv
import dataclasses
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import text_files

_GALLERIES = {'ijbb': ('S1', 'S2'), 'ijbc': ('G1', 'G2')}
_FILES = ('face_tid_mid.txt', 'name_5pts_score.txt', 'template_pair_label.txt')
_REMEDY = "give the folder that holds meta/ with the benchmark's files"


# eq=False: arrays have no single truth value to compare by.
@dataclasses.dataclass(frozen=True, eq=False)
class TemplateList:
  """List of templates, each of one subject: a gallery, or the probes.

  Attributes:
    name: its name in the published files: 'G1', 'S2', 'mixed'.
    templates: the templates' numbers, rising, int32, ``[T]``.
    subjects: subject of each, int32, ``[T]``.
  """

  name: str
  templates: np.ndarray
  subjects: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class IJB:
  """Images, templates and pairs of IJB-B or IJB-C.

  Attributes:
    name: 'IJB-B' or 'IJB-C'.
    images: folder of the images, ``loose_crop``; need not be there.
    names: name of each image in that folder, n of them.
    templates: template of each image, int32, ``[n]``.
    media: medium of each image, int32, ``[n]``.
    landmarks: x and y of the eyes, the nose and the corners of the mouth in
      the image, in pixels, float64, ``[n, 5, 2]``.
    detector_scores: score of the face detector, float64, ``[n]``.
    pairs: numbers of the two templates, int32, ``[P, 2]``.
    same: whether the pair is of one subject, bool, ``[P]``.
    galleries: the two galleries of the 1:N protocol; empty without its lists.
    probes: templates to search for; None without the lists.
    remarks: lines about what the files lack or repeat.
  """

  name: str
  images: Path
  names: list[str]
  templates: np.ndarray
  media: np.ndarray
  landmarks: np.ndarray
  detector_scores: np.ndarray
  pairs: np.ndarray
  same: np.ndarray
  galleries: tuple[TemplateList, ...]
  probes: TemplateList | None
  remarks: tuple[str, ...]

  @property
  def image_paths(self) -> list[str]:
    """Paths of the images to embed, in the order of the embeddings."""
    folder = str(self.images)
    return [os.path.join(folder, name) for name in self.names]


def read_ijb(folder: str | os.PathLike[str]) -> IJB:
  r"""Reads the files of IJB-B or IJB-C.

  ``meta/``, or the folder itself, holds three files whose names begin with
  ``ijbb_`` or ``ijbc_``: ``face_tid_mid.txt``, ``name_5pts_score.txt`` and
  ``template_pair_label.txt``. For 1:N there are ``1N_gallery_S1.csv`` and
  ``_S2`` (IJB-C: ``G1``, ``G2``) and ``1N_probe_mixed.csv`` too, all three or
  none. IJB-C's pairs take 5 seconds.

  Args:
    folder: the folder.

  Returns:
    Everything that the protocols need. ``remarks`` say if the lists of 1:N
    are missing, and if an image is in several templates, for which there is a
    warning too.

  Raises:
    InputError: names the file and line if one is missing or has other content,
      the two lists of images differ, an image is in one template twice, or a
      template of a pair has no images.

  Examples:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, text in {
    ...   'face_tid_mid.txt': '1.jpg 1 5\n2.jpg 2 6\n',
    ...   'name_5pts_score.txt': '1.jpg 1 2 3 4 5 6 7 8 9 10 0.9\n'
    ...                          '2.jpg 1 2 3 4 5 6 7 8 9 10 0.8\n',
    ...   'template_pair_label.txt': '1 2 0\n',
    ... }.items():
    ...   _ = (folder / f'ijbc_{name}').write_text(text)
    >>> ijb = read_ijb(folder)
    >>> ijb.name, ijb.names, ijb.landmarks.shape
    ('IJB-C', ['1.jpg', '2.jpg'], (2, 5, 2))
    >>> print(ijb.remarks[0].split(';')[0])
    IJB-C: no 1:N, as there is no ijbc_1N_gallery_G1.csv
  """
  folder = Path(folder)
  prefix, paths = _find(folder)
  name = f'IJB-{prefix[-1].upper()}'
  tid_mid, points, label = (paths[file] for file in _FILES)
  names, templates, media = _read_images(tid_mid)
  landmarks, detector_scores = _read_points(points, names, tid_mid)
  pairs, same = _read_pairs(label)
  ids = np.unique(templates)
  _check_known(label, pairs.ravel(), ids, lambda k: f'line {k // 2 + 1}')
  remarks = _shared_images(tid_mid, names, templates)
  galleries, probes, missing = _read_lists(name, prefix, paths)
  for path, one in [*galleries, *([probes] if probes else [])]:
    _check_known(path, one.templates, ids, lambda k: 'a line')
  root = folder.parent if folder.name == 'meta' else folder
  return IJB(
    name=name,
    images=root / 'loose_crop',
    names=names,
    templates=templates,
    media=media,
    landmarks=landmarks,
    detector_scores=detector_scores,
    pairs=pairs,
    same=same,
    galleries=tuple(one for _, one in galleries),
    probes=probes and probes[1],
    remarks=(*remarks, *missing),
  )


def _find(folder: Path) -> tuple[str, dict[str, Path]]:
  """Finds the files; returns 'ijbb' or 'ijbc', and paths by end of name."""
  places = (folder / 'meta', folder)
  found = {
    prefix: {
      file: next(
        (p for place in places if (p := place / f'{prefix}_{file}').is_file()),
        places[0 if places[0].is_dir() else 1] / f'{prefix}_{file}',
      )
      for file in (
        *_FILES,
        *(f'1N_gallery_{gallery}.csv' for gallery in galleries),
        '1N_probe_mixed.csv',
      )
    }
    for prefix, galleries in _GALLERIES.items()
  }
  there = [
    prefix
    for prefix, paths in found.items()
    if any(paths[file].is_file() for file in _FILES)
  ]
  if len(there) == 2:
    raise InputError(
      f'{folder} holds files of IJB-B (ijbb_) and of IJB-C (ijbc_); give each '
      'a folder of its own'
    )
  if not there:
    raise InputError(
      f'{folder}: there is no ijbb_{_FILES[0]} or ijbc_{_FILES[0]}, nor in '
      f'meta/; {_REMEDY}'
    )
  return there[0], found[there[0]]


def _read_images(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Reads name, template and medium of each image."""
  names, numbers = [], []
  for line, (name, template, medium) in enumerate(
    text_files.read_fields(path, 3), 1
  ):
    try:
      numbers.append((_int32(template), _int32(medium)))
    except ValueError:
      text_files.wrong_line(
        path,
        line,
        f'{name} {template} {medium}',
        'a name and two integers below 2^31',
      )
    names.append(name)
  templates, media = np.array(numbers, np.int32).T
  return names, templates.copy(), media.copy()


def _int32(field: str) -> int:
  value = int(field)
  if abs(value) >= 1 << 31:
    raise ValueError
  return value


def _read_points(
  path: Path, names: list[str], tid_mid: Path
) -> tuple[np.ndarray, np.ndarray]:
  """Reads landmarks and detector scores; names must be those of the images."""
  values = np.empty((len(names), 11))
  line = 0
  for line, (name, *numbers) in enumerate(text_files.read_fields(path, 12), 1):
    if line > len(names) or name != names[line - 1]:
      expected = names[line - 1] if line <= len(names) else 'no more lines'
      raise InputError(
        f'{path}: line {line} is of {name}, but {tid_mid.name} has {expected} '
        'there; both must list the same images in the same order'
      )
    try:
      values[line - 1] = numbers
    except ValueError:
      text_files.wrong_line(
        path, line, ' '.join((name, *numbers)), 'a name and 11 numbers'
      )
  if line < len(names):
    raise InputError(
      f'{path}: {line} lines, but {tid_mid.name} has {len(names)}; both must '
      'list the same images in the same order'
    )
  bad = np.flatnonzero(~np.isfinite(values).all(axis=1) | (values[:, 10] < 0))
  if len(bad):
    raise InputError(
      f'{path}: line {bad[0] + 1} has a number that is not finite, or a '
      'detector score below 0; give the published file'
    )
  return values[:, :10].reshape(-1, 5, 2).copy(), values[:, 10].copy()


def _read_pairs(path: Path) -> tuple[np.ndarray, np.ndarray]:
  values = text_files.read_integers(path, 3)
  label = values[:, 2]
  wrong = np.flatnonzero((label != 0) & (label != 1))
  if len(wrong):
    raise InputError(
      f'{path}: line {wrong[0] + 1} has label {label[wrong[0]]}; expected 1 '
      '(one subject) or 0 (two)'
    )
  return np.ascontiguousarray(values[:, :2]), label == 1


def _check_known(
  path: Path,
  templates: np.ndarray,
  ids: np.ndarray,
  place: Callable[[int], str],
) -> None:
  """Checks that templates have images; ``place(k)`` says where entry k is."""
  listed = np.unique(templates)
  unknown = np.setdiff1d(listed, ids, assume_unique=True)
  if len(unknown):
    k = np.flatnonzero(np.isin(templates, unknown))[0]
    raise InputError(
      f'{path}: {place(k)} has template {templates[k]}, which has no images, '
      f'the first of {len(unknown)} such; check that all files are of one '
      'benchmark'
    )


def _shared_images(
  path: Path, names: list[str], templates: np.ndarray
) -> list[str]:
  """Says which image is in several templates; refuses one twice in one."""
  if len(set(names)) == len(names):
    return []
  first: dict[str, int] = {}
  pairs, shared = set(), {}
  for line, (name, template) in enumerate(
    zip(names, templates.tolist(), strict=True), 1
  ):
    if (name, template) in pairs:
      raise InputError(
        f'{path}: line {line} has image {name} in template {template} a second '
        'time; it would count twice: remove the line'
      )
    pairs.add((name, template))
    if first.setdefault(name, template) != template:
      shared.setdefault(name, (first[name], template))
  name, (one, other) = next(iter(shared.items()))
  remark = (
    f'{path.name}: image {name} is in templates {one} and {other}, the first '
    f'of {len(shared):,} images in several templates; pairs of such templates '
    'look more alike than they are'
  )
  warnings.warn(remark, stacklevel=3)
  return [remark]


def _read_lists(
  name: str, prefix: str, paths: dict[str, Path]
) -> tuple[
  list[tuple[Path, TemplateList]],
  tuple[Path, TemplateList] | None,
  list[str],
]:
  """Reads galleries and probes, with their paths, or says what is missing."""
  labels = (*_GALLERIES[prefix], 'mixed')
  files = [path for file, path in paths.items() if file not in _FILES]
  absent = [path for path in files if not path.is_file()]
  if len(absent) == len(files):
    return (
      [],
      None,
      [
        f'{name}: no 1:N, as there is no {absent[0].name}; it takes that, '
        f'{absent[1].name} and {absent[2].name}'
      ],
    )
  if absent:
    raise InputError(
      f'{absent[0]}: No such file, but there are other lists of 1:N; add it, '
      'or remove them for 1:1 alone'
    )
  *galleries, probes = (
    (path, _read_list(path, label))
    for path, label in zip(files, labels, strict=True)
  )
  for path, gallery in galleries:
    if not np.isin(probes[1].subjects, gallery.subjects).any():
      raise InputError(
        f'{path}: none of the {len(probes[1].subjects):,} probes of '
        f'{probes[0].name} shows a subject of this gallery; check that both '
        'lists are of one benchmark'
      )
  return galleries, probes, []


def _read_list(path: Path, name: str) -> TemplateList:
  """Reads a list that has a line for each image of each template."""
  subjects: dict[int, int] = {}
  try:
    text = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise InputError(
      f'{path}: not UTF-8 text; give the published file'
    ) from error
  with io.StringIO(text, newline='') as file:
    lines = csv.reader(file)
    header = [field.strip().upper() for field in next(lines, [])]
    if not {'TEMPLATE_ID', 'SUBJECT_ID'} <= set(header):
      raise InputError(
        f'{path}: line 1 has no TEMPLATE_ID and SUBJECT_ID; give the published '
        'file, with its header'
      )
    columns = header.index('TEMPLATE_ID'), header.index('SUBJECT_ID')
    for line, fields in enumerate(lines, 2):
      try:
        template, subject = (_int32(fields[k]) for k in columns)
      except (ValueError, IndexError):
        text_files.wrong_line(
          path,
          line,
          ','.join(fields),
          'template and subject as integers below 2^31',
        )
      if subjects.setdefault(template, subject) != subject:
        raise InputError(
          f'{path}: line {line} has template {template} of subject {subject}, '
          f'an earlier line of {subjects[template]}; a template is of one '
          'person'
        )
  if not subjects:
    raise InputError(f'{path}: there are no templates; give the published file')
  templates = np.array(sorted(subjects), np.int32)
  return TemplateList(
    name,
    templates,
    np.array([subjects[k] for k in templates.tolist()], np.int32),
  )
