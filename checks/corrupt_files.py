# SPDX-License-Identifier: Apache-2.0
r"""Damages small data sets in every way, and looks for what goes by in silence.

Each case takes a good data set of some kind, damages one of its files, opens
and reads all of it, and inspects it. It must end in one of these:

  refused opening   one line, an `InputError` that names the file
  refused reading   the same, when the images are read
  same              every image and label as before (the damage hit padding, a
                    field that nobody reads, or what the index leaves out)
  changed           as many images as before, some with other pixels, another
                    label or another place: neither a pixel nor a label has a
                    checksum. The inspection's facts differ from before
  another number    of images. Only where the data hold no count, and only
                    where it can be seen: without record 0 an index that has
                    lost lines from its middle is that of a smaller set, but the
                    inspection says that train.rec holds records which no line
                    names; and a folder of images without one of them is a
                    smaller folder

Everything else is a finding: a process that dies, takes too long or too much
memory; an exception or a warning that is no `InputError`; a message that is no
single line or names no file; another number of images without a word; a label
that is no class; contents that differ though the inspection tells what it told
before; an image whose bytes are whole that is left out or read instead of
another; data that cannot be read though the inspection calls them good. Exits
with 1 if there is one.

A case is known by its number, which means the same as long as neither this
script nor Pillow changes. Workers are silent: libjpeg and TensorFlow write what
they think of damaged images to stderr. A case run alone is not.

    python checks/corrupt_files.py  # 10,000 files, in some minutes.
    python checks/corrupt_files.py --seed 1 --files 500
    python checks/corrupt_files.py --only 1234  # In this process; files stay.
"""

import argparse
import collections
import contextlib
import io
import multiprocessing
import os
import pickle
import re
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from elasticface_jax.data import (
  Report,
  inspect,
  open_encoded,
  prepare_shards,
  read_pairs,
  write_pairs,
  write_rec_folder,
)
from elasticface_jax.data.sources import recordio
from elasticface_jax.errors import InputError

STARTUP = 300  # Seconds for a worker to import TensorFlow and read good data.
MEMORY = 4 << 30  # Bytes that damage may make a worker ask for.
CHANGED = 10**18  # When good files were changed last, in ns: in 2001.
OUTCOMES = (
  'refused opening',
  'refused reading',
  'same',
  'changed',
  'another number',
  'FOUND',
)
MAGIC = bytes.fromhex('0a23d7ce')

# Data sets: ten images of five classes, of which one is empty.

LABELS = [0, 0, 0, 1, 1, 3, 3, 3, 3, 4]
NUM_CLASSES = 5


class Kind(NamedTuple):
  """A form of data, and how it is read.

  Attributes:
    make: writes good data into an empty folder, with a generator to draw from;
      returns the images as they lie there, in order.
    open: opens what lies in a folder.
    read: reads all of what `open` returned: images, uint8 ``[n, 112, 112, 3]``,
      labels ``[n]`` or what else there is, and the number of classes.
    inspect: the inspection of what lies in the folder.
    left_out: whether the report says, or the folder shows, that images are left
      out; None where the data hold their count, so that another one must be
      refused.
  """

  make: Callable[[Path, np.random.Generator], list[bytes]]
  open: Callable[[Path], Any]
  read: Callable[[Any], tuple]
  inspect: Callable[[Path], Report]
  left_out: Callable[[Report, Path], bool] | None = None


def draw(rng, form='jpeg') -> list[bytes]:
  """Ten encoded images of about a kilobyte."""
  encoded = []
  for _ in LABELS:
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((112, 112)).save(out, form, optimize=True)
    encoded.append(out.getvalue())
  return encoded


def with_magics(encoded: bytes) -> bytes:
  """A JPEG with a comment of magics at every alignment."""
  comment = b''.join(MAGIC + b'x' for _ in range(8))
  head = b'\xff\xfe' + (len(comment) + 2).to_bytes(2, 'big')
  return encoded[:2] + head + comment + encoded[2:]


def write_header(folder, images):
  write_rec_folder(folder, zip(images, LABELS, strict=True), NUM_CLASSES)


def make_header(folder, rng):
  images = draw(rng)
  write_header(folder, images)
  return images


def make_kept(folder, rng):
  images = make_header(folder, rng)
  open_encoded(folder)  # Leaves what it has found beside the data.
  return images


def make_split(folder, rng):
  images = [with_magics(one) for one in draw(rng)]
  write_header(folder, images)
  return images


def make_without_header(folder, images, first_key):
  paths = folder / 'train.rec', folder / 'train.idx'
  with recordio.RecordWriter(*paths) as out:
    for key, (label, body) in enumerate(zip(LABELS, images, strict=True)):
      key += first_key
      out.write(key, recordio.pack(label, body, record_id=key))
  (folder / 'property').write_text(f'{NUM_CLASSES},112,112\n')
  return images


def make_headerless(folder, rng):
  return make_without_header(folder, draw(rng), 0)


def make_from_one(folder, rng):
  return make_without_header(folder, draw(rng, 'png'), 1)


def make_folder(folder, rng):
  images = draw(rng)
  for number, (label, one) in enumerate(zip(LABELS, images, strict=True)):
    path = folder / f'person{label}' / f'{number}.jpg'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(one)
  return images


def make_shards(file_format):
  def make(folder, rng):
    images = draw(rng)
    with tempfile.TemporaryDirectory() as rec:
      write_header(rec, images)
      prepare_shards(
        open_encoded(rec),
        folder / 'data',
        file_format=file_format,
        num_shards=2,
      )
    return images

  return make


def read_source(source):
  images, labels = source.render(np.arange(source.num_images))
  return images, labels, source.num_classes


def unindexed(report, folder):
  return not report.facts['records'].endswith(' 0 not')


def files_gone(report, folder):
  return len(list(folder.glob('*/*.jpg'))) < len(LABELS)


SAME = [True, False, False, True, True]


def make_pairs(name):
  def make(folder, rng):
    images = draw(rng)
    write_pairs(folder / name, images, SAME)
    return images

  return make


def make_pairs_of_arrays(folder, rng):
  images = draw(rng)
  arrays = [np.frombuffer(one, np.uint8) for one in images]
  content = pickle.dumps((arrays, np.array(SAME)), protocol=2)
  (folder / 'pairs.bin').write_bytes(content)
  return images


def read_pair_set(pairs):
  return pairs.images, pairs.same, 2


def training(make, left_out=None, name=''):
  """A kind that is trained on, in the folder or in `name` there."""
  return Kind(
    make,
    lambda folder: open_encoded(folder / name),
    read_source,
    lambda folder: inspect(folder / name),
    left_out,
  )


def verification(make, name):
  """A kind that is verified with: a file of pairs."""
  return Kind(
    make,
    lambda folder: read_pairs(folder / name),
    read_pair_set,
    lambda folder: inspect(folder / name),
  )


KINDS = {
  'rec, header': training(make_header),
  'rec, header, index kept': training(make_kept),
  'rec, header, split records': training(make_split),
  'rec, key 0 is an image': training(make_headerless, unindexed),
  'rec, no key 0, PNG': training(make_from_one, unindexed),
  'folder': training(make_folder, files_gone),
  'TFRecord': training(make_shards('tfrecord'), name='data'),
  'ArrayRecord': training(make_shards('array_record'), name='data'),
  'bin, bytes': verification(make_pairs('pairs.bin'), 'pairs.bin'),
  'bin, arrays': verification(make_pairs_of_arrays, 'pairs.bin'),
  'npz': verification(make_pairs('pairs.npz'), 'pairs.npz'),
}

# Damages: of the bytes of a file, with a generator, and the bytes of another
# file. They return other bytes, or None for a file that is gone.

# Where something begins: a line, a record, a JPEG. Damage that keeps to such
# places is the hardest to see.
JOINT = re.compile(rb'(?<=\n)|\x0a\x23\xd7\xce|\xff\xd8\xff')


def somewhere(data, rng) -> int:
  """A position: anywhere, where something begins, or soon after that."""
  if rng.random() < 1 / 3:
    return int(rng.integers(0, len(data) + 1))
  joints = [0, *(match.start() for match in JOINT.finditer(data)), len(data)]
  at = int(rng.choice(joints))
  if rng.random() < 0.5:
    at = min(at + int(rng.integers(0, 40)), len(data))
  return at


def span(data, rng) -> tuple[int, int]:
  return tuple(sorted(somewhere(data, rng) for _ in range(2)))


def flip(data, rng, other):
  hurt = bytearray(data)
  for _ in range(rng.integers(1, 9)):
    hurt[min(somewhere(data, rng), len(data) - 1)] ^= 1 << rng.integers(0, 8)
  return bytes(hurt)


def cut(data, rng, other):
  return data[: somewhere(data, rng)]


def drop(data, rng, other):
  start, stop = span(data, rng)
  return data[:start] + data[stop:]


def insert(data, rng, other):
  at = somewhere(data, rng)
  return data[:at] + rng.bytes(rng.integers(1, 20)) + data[at:]


def word(data, rng, other):
  at = somewhere(data, rng) & ~3
  new = [bytes(4), b'\xff' * 4, rng.bytes(4), MAGIC][rng.integers(0, 4)]
  return data[:at] + new + data[at + 4 :]


def digit(data, rng, other):
  places = [match.start() for match in re.finditer(rb'\d', data)]
  if not places:
    return data
  at = rng.choice(places)
  return data[:at] + b'%d' % rng.integers(0, 10) + data[at + 1 :]


def swap(separator):
  """Swaps two of the pieces that a separator, which is kept, makes."""

  def damage(data, rng, other):
    pieces = re.split(separator, data)
    first, second = 2 * rng.integers(0, len(pieces) // 2 + 1, 2)
    pieces[first], pieces[second] = pieces[second], pieces[first]
    return b''.join(pieces)

  return damage


def repeat(data, rng, other):
  start, stop = span(data, rng)
  return data[:stop] + data[start:]


def zero_page(data, rng, other):
  page = int(rng.choice([512, 4096]))
  at = page * int(rng.integers(0, -(-len(data) // page)))
  return data[:at] + bytes(len(data[at : at + page])) + data[at + page :]


def splice(data, rng, other):
  """Another file's bytes, put over this one's or between them."""
  start, stop = span(other, rng)
  at = somewhere(data, rng)
  over = rng.random() < 0.5
  return data[:at] + other[start:stop] + data[at + over * (stop - start) :]


def mistake(data, rng, other):
  return other


def empty(data, rng, other):
  return b''


def gone(data, rng, other):
  return None


def grow(data, rng, other):
  more = int(rng.integers(1, 5000))
  return data + [bytes(more), rng.bytes(more), data, other][rng.integers(0, 4)]


DAMAGES = {
  'bits flipped': flip,
  'cut off': cut,
  'range dropped': drop,
  'bytes inserted': insert,
  'word overwritten': word,
  'digit changed': digit,
  'lines swapped': swap(rb'(\n)'),
  'fields swapped': swap(rb'([\t\n,])'),
  'range repeated': repeat,
  'page zeroed': zero_page,
  "another's bytes": splice,
  'another file': mistake,
  'emptied': empty,
  'gone': gone,
  'grown': grow,
}

# Cases.


class Case(NamedTuple):
  """What became of one damaged file.

  Attributes:
    number: of the case.
    what: kind, file and damage; empty if its worker died.
    outcome: one of `OUTCOMES`.
    told: the message, or what was found.
  """

  number: int
  what: tuple[str, str, str] | tuple[()]
  outcome: str
  told: str


class Finding(Exception):
  """What must not be."""


class Good(NamedTuple):
  """A good data set.

  Attributes:
    files: bytes by path inside of the folder; changed last at `CHANGED`.
    images: as they lie there.
    contents: what was read: images, labels, number of classes.
    facts: the report's.
  """

  files: dict[str, bytes]
  images: list[bytes]
  contents: tuple
  facts: dict[str, str]


class Bench:
  """Good data of every kind in memory, and a folder to damage copies in.

  Args:
    folder: empty; holds the latest case when it is done.
    seed: of the data and the damages.
    kinds: by name.

  Raises:
    SystemExit: if good data are not read as they were made.
  """

  def __init__(self, folder: Path, seed: int, kinds: dict[str, Kind]):
    self.folder, self.seed, self.kinds = folder / 'case', seed, kinds
    self.good = {}
    for number, (name, kind) in enumerate(kinds.items()):
      place = folder / str(number)
      place.mkdir()
      images = kind.make(place, np.random.default_rng([seed, number]))
      paths = sorted(path for path in place.rglob('*') if path.is_file())
      for path in paths:
        os.utime(path, ns=(CHANGED, CHANGED))
      # A kept index holds the times, and is made again here: now, its bytes
      # are the same each time.
      contents = kind.read(kind.open(place))
      report = kind.inspect(place)
      if len(contents[0]) != len(images) or not report.ok:
        raise SystemExit(
          f'{name}: good data of {len(images)} images are read as '
          f'{len(contents[0])}, and inspected as\n{report}'
        )
      files = {
        str(path.relative_to(place)): path.read_bytes() for path in paths
      }
      self.good[name] = Good(files, images, contents, report.facts)

  def run(self, number: int) -> Case:
    """Makes a case, reads it and judges what came of it."""
    rng = np.random.default_rng([self.seed, number])
    name = list(self.kinds)[number % len(self.kinds)]
    good = self.good[name]
    # A short file is hurt less often than a long one, but often enough.
    weights = np.log2([1 + len(data) for data in good.files.values()])
    file = str(rng.choice(list(good.files), p=weights / weights.sum()))
    data = good.files[file]
    hurt = data
    while hurt == data:
      damage = str(rng.choice(list(DAMAGES)))
      hurt = DAMAGES[damage](data, rng, self._other(name, file, rng))
    # A disk that rots changes no time; a copy that fails does.
    self._write(good, file, hurt, keep_time=rng.random() < 0.5)
    try:
      with nothing_aside():
        outcome, told = judge(self.kinds[name], good, self.folder)
    except Finding as finding:
      outcome, told = 'FOUND', str(finding)
    return Case(number, (name, file, damage), outcome, told)

  def _other(self, name, file, rng) -> bytes:
    """A file of another data set, half the time one of the same kind."""
    others = [
      (path, data)
      for kind, good in self.good.items()
      for path, data in good.files.items()
      if (kind, path) != (name, file)
    ]
    alike = [
      (path, data)
      for path, data in others
      if Path(path).suffix == Path(file).suffix
    ]
    if alike and rng.random() < 0.5:
      others = alike
    return others[rng.integers(0, len(others))][1]

  def _write(self, good, hurt_file, hurt, *, keep_time):
    for path in sorted(self.folder.rglob('*'), reverse=True):
      path.rmdir() if path.is_dir() else path.unlink()
    for file, data in good.files.items():
      path = self.folder / file
      path.parent.mkdir(parents=True, exist_ok=True)
      data = hurt if file == hurt_file else data
      if data is None:
        continue
      path.write_bytes(data)
      if file != hurt_file or keep_time:
        os.utime(path, ns=(CHANGED, CHANGED))


@contextlib.contextmanager
def nothing_aside():
  """Warnings raise, and what is raised where nobody can catch it is found."""
  aside = []
  hook, sys.unraisablehook = sys.unraisablehook, aside.append
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      yield
  finally:
    sys.unraisablehook = hook
  if aside:
    raise Finding(f'raised aside: {aside[0].exc_value!r}')


def judge(kind: Kind, good: Good, folder: Path) -> tuple[str, str]:
  """Reads and inspects a damaged copy.

  Args:
    kind: what it was before.
    good: what is in it otherwise.
    folder: where it is.

  Returns:
    Which of `OUTCOMES` it is, and the message if there is one.

  Raises:
    Finding: if it is none that may be.
  """
  opened, refusal = attempt(folder, 'opening', lambda: kind.open(folder))
  outcome, contents = 'refused opening', None
  if opened is not None:
    contents, refusal = attempt(folder, 'reading', lambda: kind.read(opened))
    outcome = 'refused reading'
  report, _ = attempt(folder, 'inspecting', lambda: kind.inspect(folder))
  ok = report is not None and report.ok
  if report is not None:
    attempt(folder, 'printing the report', lambda: str(report))

  if contents is None:
    if ok:
      raise Finding(f'refused, but the inspection calls it good: {refusal}')
    return outcome, refusal
  images, labels, num_classes = contents
  if images.shape[1:] != (112, 112, 3) or images.dtype != np.uint8:
    raise Finding(f'images are {images.dtype} {images.shape}')
  for label in labels:
    if not 0 <= label < num_classes:
      raise Finding(f'label {label} of {num_classes} classes')
  if len(images) != len(good.images):
    if kind.left_out and report is not None and kind.left_out(report, folder):
      return 'another number', ''
    raise Finding(
      f'{len(images)} images instead of {len(good.images)} without a word\n'
      f'{report}'
    )
  if all(map(np.array_equal, contents, good.contents)):
    return 'same', ''
  if ok and report.facts == good.facts:
    raise Finding('contents are others, the inspection tells what it told')
  check_whole_images(good, folder, images)
  return 'changed', ''


def check_whole_images(good: Good, folder: Path, images: np.ndarray):
  """Holds what was read against the images whose bytes are still whole.

  Args:
    good: what was there before.
    folder: what is there now.
    images: what was read.

  Raises:
    Finding: if one was not read, or was read more often than it is there.
  """
  paths = [folder / name for name in good.files]
  left = [path.read_bytes() for path in paths if path.exists()]
  if sum(map(len, left)) > sum(map(len, good.files.values())):
    return  # Whole records put in between are read instead, and may be.
  times = collections.Counter(image.tobytes() for image in images)
  for row, encoded in enumerate(good.images):
    there = sum(data.count(encoded) for data in left)
    read = times[good.contents[0][row].tobytes()]
    if there and not 1 <= read <= there:
      raise Finding(f'image {row} is there {there} time(s), and read {read}')


def attempt(folder: Path, what: str, call: Callable) -> tuple[Any, str]:
  """Tries something.

  Args:
    folder: what a message must name.
    what: that is tried, in words.
    call: does it.

  Returns:
    What it returned, and ''; or None and the message of an `InputError`.

  Raises:
    Finding: if it raises anything else, or its message is not fit to print.
  """
  try:
    return call(), ''
  except InputError as error:
    message = str(error)
    if not message.isprintable():
      raise Finding(f'{what}: not one clean line: {message!r}') from error
    if str(folder) not in message:
      raise Finding(f'{what}: names no file: {message}') from error
    return None, message
  except Exception as error:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raise Finding(
      f'{what}: {error!r} in {frame.name}, {Path(frame.filename).name}:'
      f'{frame.lineno}\n{traceback.format_exc()}'
    ) from error


# Workers.


def work(connection, folder: str, seed: int):
  """Answers numbers with cases until there are no more: a process."""
  bench = Bench(Path(tempfile.mkdtemp(dir=folder)), seed, KINDS)
  limit_memory()
  with open(os.devnull, 'w') as nothing:
    os.dup2(nothing.fileno(), sys.stderr.fileno())
  connection.send(None)
  try:
    while True:
      connection.send(bench.run(connection.recv()))
  except EOFError:
    pass  # The other end is closed.


def limit_memory():
  """Lets this process have no more than `MEMORY` bytes more than it has."""
  sizes = Path('/proc/self/statm')
  if sizes.exists():
    now = int(sizes.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


class Worker:
  """A process that runs cases, watched.

  Args:
    folder: for its files.
    seed: for its bench.

  Raises:
    SystemExit: if it does not start.
  """

  def __init__(self, folder: str, seed: int):
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(
      target=work, args=(theirs, folder, seed), daemon=True
    )
    self._process.start()
    theirs.close()
    _, problem = self._answer(STARTUP)
    if problem:
      raise SystemExit(f'a worker {problem} before the first case')

  @property
  def alive(self) -> bool:
    """Whether it can run another case."""
    return not self._connection.closed

  def run(self, number: int, timeout: float) -> Case:
    """Runs one case; if it does not come back, the process is gone."""
    case, problem = self._answer(timeout, number)
    return case or Case(number, (), 'FOUND', f'the process {problem}')

  def _answer(self, timeout, *numbers: int) -> tuple[Case | None, str]:
    try:
      for number in numbers:
        self._connection.send(number)
      if self._connection.poll(timeout):
        return self._connection.recv(), ''
      problem = f'was not done in {timeout:g} s'
    except (EOFError, OSError):
      self._process.join()
      code = self._process.exitcode
      problem = f'ended with {code}'
      if code < 0:
        problem = f'died of {signal.Signals(-code).name}'
    self._connection.close()
    self._process.kill()
    return None, problem


def run_watched(
  numbers: range, seed: int, timeout: float, workers: int
) -> Iterator[Case]:
  """Runs cases in worker processes.

  Args:
    numbers: of the cases.
    seed: of all.
    timeout: seconds for each.
    workers: how many run at a time.

  Yields:
    The cases in order.
  """
  mine = threading.local()
  with tempfile.TemporaryDirectory() as folder:

    def run(number):
      if not getattr(mine, 'worker', None) or not mine.worker.alive:
        mine.worker = Worker(folder, seed)
      return mine.worker.run(number, timeout)

    pool = ThreadPoolExecutor(workers)
    try:
      yield from pool.map(run, numbers)
    finally:
      pool.shutdown(cancel_futures=True)


def table(cases: list[Case], column: int) -> str:
  """Counts of outcomes by kind (0), file (1) or damage (2)."""
  counts = collections.Counter(
    (row_name(case.what[column]) if case.what else 'process gone', case.outcome)
    for case in cases
  )
  rows = list(dict.fromkeys(row for row, _ in counts))
  width = max(map(len, rows))
  lines = [' ' * width + ''.join(f'{name:>17}' for name in OUTCOMES)]
  for row in rows:
    cells = ''.join(f'{counts[row, name]:17,}' for name in OUTCOMES)
    lines.append(f'{row:{width}}{cells}')
  return '\n'.join(lines)


def row_name(text: str) -> str:
  """Files that are told apart by a number alone have one row."""
  if '.' not in text:
    return text
  return re.sub(r'\d+', 'N', Path(text).name)


def parse(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--files', type=int, default=10_000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--timeout', type=float, default=30, help='seconds each')
  parser.add_argument('--workers', type=int, default=1)
  parser.add_argument('--only', type=int, metavar='N', help='this case alone')
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the cases and tells what came of them."""
  args = parse(argv)
  if args.only is not None:
    folder = Path(tempfile.mkdtemp())
    case = Bench(folder, args.seed, KINDS).run(args.only)
    print(*case.what, sep=': ')
    print(f'{case.outcome}: {case.told}\nin {folder}/case')
    return int(case.outcome == 'FOUND')
  cases = []
  start = time.monotonic()
  for case in run_watched(
    range(args.files), args.seed, args.timeout, args.workers
  ):
    cases.append(case)
    if case.outcome == 'FOUND':
      print(
        f'FOUND, --seed {args.seed} --only {case.number}: '
        f'{", ".join(case.what)}: {case.told.splitlines()[0][:300]}',
        flush=True,
      )
    if len(cases) % 1000 == 0:
      seconds = time.monotonic() - start
      print(f'{len(cases)} files in {seconds:.0f} s', flush=True)
  for column in range(3):
    print(f'\n{table(cases, column)}')
  found = sum(case.outcome == 'FOUND' for case in cases)
  print(f'\n{len(cases)} damaged files, {found} finding(s)')
  return int(found > 0)


if __name__ == '__main__':
  sys.exit(main())
