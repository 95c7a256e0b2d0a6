# SPDX-License-Identifier: Apache-2.0
"""The parser of `elasticface`, with all commands."""

import argparse

from elasticface_jax import __version__, exit_codes
from elasticface_jax.commands import (
  benchmark,
  convert,
  embed,
  evaluate,
  export,
  fingerprint,
  inspect,
  plan,
  prepare,
  repeat,
  report,
  study,
  train,
  verify,
)

# In the order of `elasticface --help`.
_COMMANDS = {
  'train': (train, 'Train a recipe, or resume the run in a folder.'),
  'study': (study, 'Train configs times seeds, and compare them.'),
  'evaluate': (evaluate, 'Verify pair sets with a trained backbone.'),
  'verify': (verify, 'Tell whether two images show one person.'),
  'report': (report, 'Write one page of runs, side by side.'),
  'embed': (embed, 'Write the embeddings of all images of a data set.'),
  'export': (export, 'Write a backbone that runs without this package.'),
  'convert': (convert, 'Make a run folder from the weights of others.'),
  'inspect': (inspect, 'Check every image of a data set or a pair set.'),
  'prepare': (
    prepare,
    'Write a data set as shards, or a pair set as one file, and read it back.',
  ),
  'fingerprint': (
    fingerprint,
    'Print the SHA-256 of a train state, equal on any devices and hosts.',
  ),
  'repeat': (repeat, 'Train a run again and compare it bit for bit.'),
  'plan': (
    plan,
    'Compile a step for hardware that is not here; see if it fits.',
  ),
  'benchmark': (
    benchmark,
    'Measure the speed of steps, head, loop and input on this machine.',
  ),
}


class _Parser(argparse.ArgumentParser):
  """Parser that prints one line for a mistake, instead of the usage."""

  def error(self, message):
    raise SystemExit(exit_codes.fail(f'{message}; see {self.prog} --help'))


def make() -> argparse.ArgumentParser:
  """Makes the parser; the arguments it returns have ``command`` and ``run``."""
  parser = _Parser(
    prog='elasticface',
    description='Margin-softmax losses and face recognition in JAX.',
  )
  parser.add_argument(
    '--version', action='version', version=f'%(prog)s {__version__}'
  )
  commands = parser.add_subparsers(
    dest='command', required=True, metavar='COMMAND', parser_class=_Parser
  )
  for name, (module, text) in _COMMANDS.items():
    subparser = commands.add_parser(name, help=text, description=text)
    module.add_arguments(subparser)
    subparser.set_defaults(run=module.run)
  return parser
