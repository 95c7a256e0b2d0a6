# SPDX-License-Identifier: Apache-2.0
"""The training step in PyTorch, compared with ours.

The same network, loss and SGD, with PyTorch's libraries and layouts.
Differences:

- The batch is one group, where ours may be several: BatchNorm's statistics, and
  those of AdaFace and CurricularFace, are of more samples. It is PyTorch's
  plain form, and its fastest.
- The logits ``[B, C]`` exist, and so does the gradient of all class centres.
- Flips, margins and dropout come from PyTorch's own generator.
- With ``bfloat16`` the network runs under autocast. Then, as in ours,
  parameters and statistics stay float32, and cosines and all after them are
  float32. Our output of ``fc`` is float32; here it is bfloat16.
- On a GPU, products and convolutions of float32 may use TF32. Ours do too,
  except in the head, which has full float32: there PyTorch has less to do.
- With ``remat``, stem and blocks are checkpointed; their running statistics
  then move twice a step, as usual in PyTorch.

On a CPU PyTorch uses as many threads as there are cores; this module does not
change that. torch is imported where it is used: nothing else needs it.

Letters: B samples, C classes, D embedding size, u sub-centres of a class.
"""

import functools
from collections.abc import Callable, Collection

from elasticface_jax.benchmark.pytorch.losses import (
  draw_margins,
  init_statistics,
  mean_loss,
)
from elasticface_jax.benchmark.pytorch.network import make_network
from elasticface_jax.benchmark.recipe import (
  BETAS,
  CLIP_NORM,
  EPS,
  LR,
  MOMENTUM,
  WEIGHT_DECAY,
  Recipe,
)
from elasticface_jax.errors import InputError, first_line
from elasticface_jax.models.faces import IMAGE_SHAPE
from elasticface_jax.training import augment
from elasticface_jax.training.loss import by_name

# torch 2.13 on a CPU writes past the end of an array in the gradient of a 1x1
# convolution of stride 2, channels last, with fewer input channels.
_LEAST_WIDTH = 16
_PLAIN, _LAST = 'torch', 'torch channels_last'
# Modes of torch.compile by name of the compiled variant. CUDA graphs spare the
# launches of a few thousand kernels, which a fast GPU may wait for.
_COMPILED = {
  'cpu': {'torch compiled': 'default'},
  'cuda': {
    'torch compiled': 'default',
    'torch cudagraphs': 'reduce-overhead',
    'torch max-autotune': 'max-autotune-no-cudagraphs',
  },
}


def make_variants(
  recipe: Recipe, device: str, names: Collection[str] | None = None
) -> dict[str, Callable[[], None]]:
  """Makes variants of one training step, each the fastest on some machine.

  On a CPU: plain, ``channels_last``, and the latter compiled. On a GPU all are
  ``channels_last``, with cuDNN choosing its kernels by trial; TF32 is allowed
  for the entire process. SGD is fused on both. A variant that torch cannot
  compile here is left out, and the reason is printed.

  Args:
    recipe: of the step.
    device: ``'cpu'`` or ``'cuda'``.
    names: those to make, some of `names_of`; all of them if None.

  Returns:
    Functions by name. Each runs one step on a random batch that is on the
    device already, and waits for its end.

  Raises:
    InputError: if the recipe needs something that is not written here.
  """
  check(recipe)
  allow_fast_kernels(device)
  wanted = names_of(device) if names is None else names
  variants = {}
  if device == 'cpu':
    if _PLAIN in wanted:
      variants[_PLAIN] = Step(recipe, device, channels_last=False)
    if recipe.model.get('width', 64) < _LEAST_WIDTH:
      print(
        'left out: torch channels_last and torch compiled, as oneDNN crashes '
        f'there with fewer than {_LEAST_WIDTH} channels',
        flush=True,
      )
      return variants
  step = Step(recipe, device, channels_last=True)
  if _LAST in wanted:
    variants[_LAST] = step
  modes = [name for name in _COMPILED[device] if name in wanted]
  variants |= compiled(step, step.objective, modes, device)
  return {name: _waiting(run, device) for name, run in variants.items()}


def names_of(device: str) -> tuple[str, ...]:
  """Returns the names of a device's variants, the plainest first."""
  plain = (_PLAIN,) if device == 'cpu' else ()
  return (*plain, _LAST, *_COMPILED[device])


def check(recipe: Recipe) -> None:
  """Checks that the recipe can be run in PyTorch.

  Args:
    recipe: of the step.

  Raises:
    InputError: if it samples classes, augments by more than flips, or freezes
      the backbone.
  """
  if recipe.freeze:
    raise InputError(
      'start.freeze=True: a frozen backbone is not written in PyTorch here: '
      'leave out --against torch, or set it to False'
    )
  if recipe.sample_rate != 1:
    raise InputError(
      f'head.sample_rate={recipe.sample_rate}: sampling of classes is not '
      'written in PyTorch here: leave out --against torch, or set it to 1'
    )
  others = augment.from_config(recipe.augment)
  if others:
    fields = [f'augment.{x.name}={x.probability}' for x in others]
    raise InputError(
      f'{" and ".join(fields)}: flips are the only augmentation in PyTorch '
      'here: leave out --against torch, or set the others to 0'
    )


def peak_memory(run_step: Callable[[], None], device: str) -> int | None:
  """Runs a step and returns the largest memory that PyTorch used in it.

  Args:
    run_step: from `make_variants`.
    device: where it runs.

  Returns:
    Bytes on the GPU, without the allocator's cache; None on a CPU, where
    PyTorch does not count.
  """
  if device != 'cuda':
    return None
  import torch

  torch.cuda.reset_peak_memory_stats()
  run_step()
  return torch.cuda.max_memory_allocated()


class Step:
  """Network, class centres, optimiser and a batch. A call runs one step.

  Attributes:
    network: the backbone.
    class_centers: ``[C, u D]``.
    optimizer: of both.
    images: uint8 ``[B, 3, 112, 112]``.
    labels: int64 ``[B]``.
  """

  def __init__(self, recipe: Recipe, device: str, *, channels_last: bool):
    import torch

    batch_size = recipe.batch_size
    self._device = device
    self._flip = recipe.flip
    self._loss = by_name(recipe.loss)
    self._autocast = recipe.dtype == 'bfloat16'
    self._head = functools.partial(
      mean_loss,
      loss=self._loss,
      group_size=recipe.group_size,
      statistics=init_statistics(self._loss, device),
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.float64 if recipe.dtype == 'float64' else torch.float32
    self.network = make_network(**recipe.model).to(
      device, dtype, memory_format=layout
    )
    shape = recipe.num_classes, recipe.subcenters * recipe.embedding_dim
    centers = 0.01 * torch.randn(shape, device=device, dtype=dtype)
    self.class_centers = centers.requires_grad_()
    self.optimizer = _optimizer(
      recipe, [*self.network.parameters(), self.class_centers]
    )
    shape = batch_size, 3, IMAGE_SHAPE[0], IMAGE_SHAPE[0]
    self.images = torch.randint(
      256, shape, dtype=torch.uint8, device=device
    ).contiguous(memory_format=layout)
    self.labels = torch.randint(
      recipe.num_classes, (batch_size,), device=device
    )

  def objective(self, images, labels, flipped, margins):
    """Computes the mean loss of a batch with given flips and margins.

    Args:
      images: as the attribute.
      labels: as the attribute.
      flipped: images to mirror, bool ``[B]``.
      margins: not yet paired, ``[B]``.

    Returns:
      A scalar, in nats.
    """
    import torch

    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    images = (images.float() - 127.5) / 127.5
    images = images.to(self.class_centers.dtype)
    with torch.autocast(self._device, torch.bfloat16, enabled=self._autocast):
      embeddings = self.network(images)
    return self._head(embeddings, self.class_centers, labels, margins)

  def draw(self):
    """Draws flips and margins of one step, ``[B]`` each."""
    import torch

    count = self.labels.shape
    flipped = torch.rand(count, device=self._device) < self._flip
    return flipped, draw_margins(self._loss, count, self._device)

  def descend(self, objective, *batch):
    """Runs one step on a batch; `objective` is the method, maybe compiled."""
    from torch.nn.utils import clip_grad_norm_

    self.optimizer.zero_grad()
    loss = objective(*batch)
    loss.backward()
    clip_grad_norm_(self.network.parameters(), CLIP_NORM)
    self.optimizer.step()
    return loss.detach()

  def __call__(self, objective=None) -> None:
    """Runs one step."""
    self.descend(
      objective or self.objective, self.images, self.labels, *self.draw()
    )


def _optimizer(recipe, parameters):
  import torch

  make, own = {
    'sgd': (torch.optim.SGD, {'momentum': MOMENTUM}),
    'adamw': (torch.optim.AdamW, {'betas': BETAS, 'eps': EPS}),
  }[recipe.optimizer]
  return make(
    [p for p in parameters if p.requires_grad],
    lr=LR * recipe.batch_size / 512,
    weight_decay=WEIGHT_DECAY,
    fused=True,
    **own,
  )


def allow_fast_kernels(device: str) -> None:
  """Lets a GPU's libraries choose kernels by trial, and use TF32."""
  if device == 'cuda':
    import torch

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')


def compiled(
  run: Callable, function: Callable, names: Collection[str], device: str
) -> dict[str, Callable[[], object]]:
  """Compiles a function in some modes; prints why one is left out.

  Args:
    run: runs `function`, which it takes as its argument.
    function: of tensors.
    names: of variants, some of `names_of`.
    device: where it runs.

  Returns:
    ``run`` with the compiled function, by name.
  """
  import torch

  variants = {}
  for name in names:
    run_compiled = functools.partial(
      run,
      torch.compile(
        function, fullgraph=True, dynamic=False, mode=_COMPILED[device][name]
      ),
    )
    try:
      # CUDA graphs are recorded at the second call, and played from the third.
      for _ in range(3):
        run_compiled()
    # A compiler may be missing, or fail in any way.
    except Exception as error:
      cause = getattr(error, 'inner_exception', error)
      print(f'left out: {name}, as {first_line(cause)}', flush=True)
    else:
      variants[name] = run_compiled
  return variants


def _waiting(run_step, device):
  """Returns `run_step`, followed by a wait for the GPU if there is one."""
  if device == 'cpu':
    return run_step
  import torch

  def once():
    run_step()
    torch.cuda.synchronize()

  return once
