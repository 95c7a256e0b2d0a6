# SPDX-License-Identifier: Apache-2.0
"""Answers on one GPU what no CPU can, most important first, in eight minutes.

    python checks/accelerator.py --out FOLDER
    python checks/accelerator.py --out FOLDER --limit 300 --only step_r50
    python checks/accelerator.py --out FOLDER --tiny

Needs jax, flax, optax, orbax-checkpoint and, for the comparisons, torch; no
data, network or TensorFlow. Run it in the folder of the clone. Phases:

bits        two processes with the trainer's flags, two with some of them
resume      a run that is killed with -9 ends with the bits of one that is not
step_r50    IResNet-50 at 128 images: ours, without flags, with loops in command
            buffers, and PyTorch's best, in turn
step_r100   IResNet-100 at 128 images, beside PyTorch's best
groups      512 images as 4 groups of 128, twice, beside 128
head        the head alone, 85,742 and 1,000,000 classes
embed       128 images through IResNet-100 in evaluation, beside PyTorch
picked      bits and time without flags, and with XLA's picks kept in a folder
step_r100_512, step_r50_512  512 images in 4 groups, beside PyTorch
autotune    PyTorch's max-autotune, which may compile for minutes

Every program runs in a process of its own, `accelerator_worker.py`. One that
fails or is late is noted with its last lines, and the others go on; phases for
which no time is left are noted too. PyTorch compiles beside the first phases.
FOLDER/accelerator.json and accelerator.md are written anew after each, so give
each run a FOLDER of its own; FOLDER/logs has what a program printed that
failed. With --tiny a CPU does all of it with a network of one block, to try
this script; its figures say nothing.

The exit code is 0 if the promises of the phases held: equal bits with the
trainer's flags, in `bits` and in `groups`, and `resume`; 1 if one did not, or
could not be shown.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerator_session import ROOT, Failed, Session, Worker

from elasticface_jax import runtime

# Seconds that a phase may take, and those below which it is not begun. The
# times are guesses from compile times elsewhere, and generous.
PHASES = {
  'bits': (150, 50),
  'resume': (80, 40),
  'step_r50': (150, 50),
  'step_r100': (150, 60),
  'groups': (100, 50),
  'head': (90, 40),
  'embed': (100, 40),
  'picked': (120, 60),
  'step_r100_512': (150, 70),
  'step_r50_512': (120, 60),
  'autotune': (200, 100),
}
# Each phase's promise, by the name in the report.
PROMISES = {'bits': 'bits', 'groups': 'groups', 'resume': 'resume'}
TRAINER = ' '.join(runtime.GPU_FLAGS)
COMMAND_BUFFERS = '--xla_gpu_enable_command_buffer=+WHILE'
DETERMINISTIC, EXCLUDE, _ = runtime.GPU_FLAGS
# Of PyTorch on a GPU; the variant that takes minutes has a phase of its own.
VARIANTS = 'torch channels_last', 'torch compiled', 'torch cudagraphs'
MAX_AUTOTUNE = 'torch max-autotune'
HEAD = sys.executable, '-m', 'elasticface_jax', 'benchmark', 'head'
KILL_AT = 11  # Steps done; the newest checkpoint may still be on its way.


def recipe(session: Session, name: str, batch_size: int, **fields) -> dict:
  """Returns the fields of a benchmark's recipe, in bfloat16; tiny if asked."""
  if session.tiny:
    model = {'name': 'tiny', 'width': 16, 'embedding_dim': 16}
    sizes = {'num_classes': 40, 'num_blocks': 2}
    scale = 16
  else:
    model = {'name': name, 'dtype': 'bfloat16'}
    sizes, scale = fields, 1
  return {
    'model': model,
    'batch_size': batch_size // scale,
    'group_size': 128 // scale,
    **sizes,
  }


def start_torch(session: Session, phase: str, early: bool = False) -> list:
  """Starts PyTorch's side of a phase's step, a process for each variant."""
  name, batch_size = STEPS[phase]
  # A CPU compiles C++ for a minute; once is enough to try it.
  tried = VARIANTS[: 2 if phase == 'step_r50' else 1]
  workers = []
  for variant in tried if session.tiny else VARIANTS:
    job = {
      'kind': 'torch_step',
      'variant': variant,
      'recipe': recipe(session, name, batch_size),
    }
    start = session.start_early if early else session.start
    workers.append(start(f'{phase}: {variant}', job))
  return workers


STEPS = {
  'step_r50': ('iresnet50', 128),
  'step_r100': ('iresnet100', 128),
  'step_r50_512': ('iresnet50', 512),
  'step_r100_512': ('iresnet100', 512),
}


def small_step(session: Session) -> dict:
  """Returns the job of the step whose bits are compared."""
  sizes = {'num_classes': 10_000, 'num_blocks': 4}
  return {
    'kind': 'step',
    'recipe': recipe(session, 'iresnet18', 128, **sizes),
  }


def bits(session: Session) -> None:
  """Compares the bits of two processes, and times all."""
  job = small_step(session)
  # Nothing is timed by XLA here, so that they may compile side by side.
  flags = {
    'trainer, 1': TRAINER,
    'trainer, 2': TRAINER,
    'exclude, 1': EXCLUDE,
    'exclude, 2': EXCLUDE,
    'deterministic': DETERMINISTIC,
  }
  alive = session.ready([session.start(n, job, f) for n, f in flags.items()])
  same = compare(session, alive, 'trainer, 1', 'trainer, 2')
  session.promise('bits', same is True, f'two processes, same bits: {same}')
  # What does not compile here would cost all phases.
  built = {worker.name for worker in alive}
  usable = [f for name, f in flags.items() if name in built]
  if usable[:1] != [TRAINER]:
    session.flags = usable[-1] if usable else ''
    session.note('flags from here on', session.flags or 'none')
  compare(session, alive, 'exclude, 1', 'exclude, 2')
  compare(session, alive, 'trainer, 1', 'exclude, 1')
  session.take_turns(alive)


def picked(session: Session) -> None:
  """Compares bits where XLA picks kernels by time, kept in a folder or not."""
  job = small_step(session)
  # The first writes what it has picked, and the second reads it.
  folder = session.folder / 'picked'
  folder.mkdir()
  kept = f'--xla_gpu_per_fusion_autotune_cache_dir={folder}'
  start = functools.partial(session.start, job=job)
  alive = session.ready([start('picks kept, 1', flags=kept)])
  alive += session.ready([start('picks kept, 2', flags=kept)])
  alive += session.ready([start('no flags', flags='')])
  session.note('files of picks', len([*folder.rglob('*')]))
  compare(session, alive, 'picks kept, 1', 'picks kept, 2')
  compare(session, alive, 'picks kept, 1', 'no flags')
  session.take_turns(alive)


def compare(
  session: Session, workers: list[Worker], one: str, other: str
) -> bool | None:
  """Notes whether two workers have the same bits; None if one is missing."""
  hashes = {w.name: w.ready['hashes'] for w in workers}
  if not {one, other} <= hashes.keys():
    return None
  same = {n: hashes[one][n] == hashes[other][n] for n in hashes[one]}
  session.note(f'same bits: {one} and {other}', same)
  return all(same.values())


def resume(session: Session) -> None:
  """Kills a run between its checkpoints, resumes it, and compares its end."""

  def start(name, workdir):
    path = session.folder / workdir
    path.mkdir(exist_ok=True)
    job = small_step(session) | {'kind': 'train', 'workdir': str(path)}
    return session.start(name, job, session.flags)

  whole, killed = start('not killed', 'whole'), start('killed', 'killed')
  killed.wait(session.until, at_step=KILL_AT)
  killed.close()
  if killed.ready:
    raise Failed('the run ended before it could be killed')
  session.note('killed', f'with -9 after step {KILL_AT}')
  alive = session.ready([start('resumed', 'killed'), whole])
  if len(alive) < 2:
    raise Failed('one of the runs did not end')
  resumed, whole = (worker.ready for worker in alive)
  same = resumed['hash'] == whole['hash']
  text = f'resumed from step {resumed["begun"]}, same bits: {same}'
  session.promise('resume', same and bool(resumed['begun']), text)


def step(session: Session, phase: str) -> None:
  """Times our step and PyTorch's in turn."""
  name, batch_size = STEPS[phase]
  job = {'kind': 'step', 'recipe': recipe(session, name, batch_size)}
  workers = [session.start('ours', job, session.flags)]
  if phase == 'step_r50':
    workers += [
      session.start('ours, no flags', job),
      session.start('ours, WHILE', job, f'{session.flags} {COMMAND_BUFFERS}'),
    ]
  alive = session.ready(workers)
  # After those of ours that time kernels, unless they were started early.
  if session.document['has_torch']:
    alive += session.ready(start_torch(session, phase))
  session.take_turns(alive)
  if phase == 'step_r50' and alive and alive[0].name == 'ours':
    profile(session, alive[0])


def profile(session: Session, worker: Worker) -> None:
  """Keeps a profile of two steps, if it is small."""
  folder = session.folder / 'profile'
  until = min(session.until, time.monotonic() + 25)
  try:
    size = worker.ask(until, do='trace', folder=str(folder))
  except Failed as error:
    return session.note('profile', {'failed': str(error)})
  if size < 20e6:
    shutil.copytree(folder, session.out / 'profile', dirs_exist_ok=True)
  session.note('profile', f'{size / 1e6:.1f} MB, kept if below 20')


def groups(session: Session) -> None:
  """Compares 4 groups of 128 with one: time, memory, and bits of two runs."""
  jobs = {
    size: {'kind': 'step', 'recipe': recipe(session, 'iresnet50', size)}
    for size in (128, 512)
  }
  workers = [
    session.start('1 x 128', jobs[128], session.flags),
    session.start('4 x 128, 1', jobs[512], session.flags),
    session.start('4 x 128, 2', jobs[512], session.flags),
  ]
  alive = session.ready(workers)
  same = compare(session, alive, '4 x 128, 1', '4 x 128, 2')
  session.promise('groups', same is True, f'two processes, same bits: {same}')
  session.take_turns([w for w in alive if w.name != '4 x 128, 2'])


def head(session: Session) -> None:
  """Runs `benchmark head` and keeps its document and its table."""
  out = session.folder / 'head.json'
  options = ['--rounds', '3', '--seconds', '0.5', '--out', str(out)]
  if session.tiny:
    options += ['--num-classes', '100,200', '--num-blocks', '2']
    options += ['--batch-size', '8', '--embedding-dim', '16']
  worker = subprocess.Popen(
    [*HEAD, *options],
    cwd=ROOT,
    env=session.environment(session.flags),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    table, errors = worker.communicate(
      timeout=max(1, session.until - time.monotonic())
    )
  except subprocess.TimeoutExpired:
    raise Failed('cut off by the time limit') from None
  finally:
    worker.kill()
  if worker.returncode:
    raise Failed(' | '.join(errors.strip().splitlines()[-6:])[-1500:])
  session.note('benchmark', json.loads(out.read_text()))
  session.note('table', table)


def embed(session: Session) -> None:
  """Times evaluation of 128 images beside PyTorch."""
  model = recipe(session, 'iresnet100', 128)['model']
  model = {k: v for k, v in model.items() if k != 'dtype'}
  job = {
    'kind': 'embed',
    'model': model,
    'count': 4 if session.tiny else 128,
    'dtypes': ['bfloat16', 'float32'],
  }
  workers = [session.start('ours', job, session.flags)]
  if session.document['has_torch']:
    workers += [
      session.start(f'torch {v}', job | {'kind': 'torch_embed', 'variant': v})
      for v in ('eager', 'compiled')
    ]
  alive = session.ready(workers)
  session.note('images', job['count'])
  session.take_turns(alive)


def autotune(session: Session) -> None:
  """Times PyTorch's slowest compiler beside our step of IResNet-50."""
  fields = recipe(session, 'iresnet50', 128)
  job = {'kind': 'torch_step', 'variant': MAX_AUTOTUNE, 'recipe': fields}
  workers = [
    session.start('ours', {'kind': 'step', 'recipe': fields}, session.flags)
  ]
  if session.document['has_torch'] and not session.tiny:
    workers.append(session.start(MAX_AUTOTUNE, job))
  alive = session.ready(workers)
  session.take_turns(alive)


def run_phase(session: Session, phase: str) -> None:
  """Runs one phase; whatever fails in it is noted and ends there."""
  limit, needed = PHASES[phase]
  session.phase = phase
  if session.left() < (10 if session.tiny else needed):
    session.note('left out', f'{session.left():.0f} s are left')
    return
  session.say(f'--- {phase}')
  limit *= 10 if session.tiny else 1  # Of a few busy cores.
  session.until = time.monotonic() + min(limit, session.left())
  begin = time.monotonic()
  try:
    FUNCTIONS[phase](session)
  except Failed as error:
    session.note('failed', str(error))
  except Exception as error:
    # A mistake in one phase must not cost the others.
    session.note('failed', f'{type(error).__name__}: {error}')
  session.close()
  session.note('took', time.monotonic() - begin)


FUNCTIONS = {
  'bits': bits,
  'picked': picked,
  'resume': resume,
  'groups': groups,
  'head': head,
  'embed': embed,
  'autotune': autotune,
} | {phase: functools.partial(step, phase=phase) for phase in STEPS}


def begin(session: Session, phases: list[str]) -> bool:
  """Looks at the device; tells whether there is what the phases need."""
  session.phase = 'device'
  session.until = time.monotonic() + min(90, session.left())
  session.document['has_torch'] = bool(importlib.util.find_spec('torch'))
  session.document['flags'] = session.flags
  found = session.ready([session.start('jax', {'kind': 'probe'})])
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    query = 'name,driver_version,compute_mode,power.limit,clocks.max.sm'
    done = subprocess.run(
      ['nvidia-smi', f'--query-gpu={query}', '--format=csv,noheader'],
      capture_output=True,
      text=True,
      timeout=10,
    )
    session.note('nvidia-smi', done.stdout.strip())
  if not found or (found[0].ready['platform'] != 'gpu' and not session.tiny):
    session.note('failed', 'jax finds no GPU here; --tiny runs on a CPU')
    return False
  if not session.document['has_torch']:
    session.note('left out', 'all of PyTorch, which is not installed')
  elif not session.tiny:
    # Their compilers need a minute and next to no GPU: they work beside the
    # first phases, which do not ask how fast anything is.
    for phase in ('step_r50', 'step_r100'):
      if phase in phases:
        start_torch(session, phase, early=True)
  return True


def main(argv: list[str] | None = None) -> int:
  """Runs the phases; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--limit', type=float, default=480)
  parser.add_argument('--only', action='append', choices=PHASES)
  parser.add_argument('--tiny', action='store_true')
  args = parser.parse_args(argv)
  args.out.mkdir(parents=True, exist_ok=True)
  phases = args.only or [*PHASES]
  before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    session = Session(args.out, args.limit, args.tiny, Path(folder), TRAINER)
    try:
      if begin(session, phases):
        for phase in phases:
          run_phase(session, phase)
    finally:
      session.close(early=True)
      session.write()
      signal.signal(signal.SIGTERM, before)
  promised = [PROMISES[phase] for phase in phases if phase in PROMISES]
  found = session.document['promises']
  held = [name for name in promised if found.get(name, {}).get('held')]
  broken = [name for name in promised if name not in held]
  session.say(f'held: {held}; not held or not shown: {broken}')
  failed = session.document['phases']['device'].get('failed')
  return 1 if broken or failed else 0


if __name__ == '__main__':
  sys.exit(main())
