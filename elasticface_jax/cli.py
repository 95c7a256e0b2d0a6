# SPDX-License-Identifier: Apache-2.0
"""`elasticface <command>`: one line for whatever fails.

Nothing is imported before `main` runs, so that Ctrl-C ends in one line from
then on.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: arguments; with None, those of the process, of which Ctrl-C is then
      handled to its end.

  Returns:
    Exit code: 0 for success only; 2 for a user's mistake; 128 + signal for a
    run that was stopped and has saved its state.
  """
  try:
    from elasticface_jax import exit_codes
  except KeyboardInterrupt:
    print('elasticface: interrupted', file=sys.stderr)
    return 130
  if argv is not None:
    return _main(argv)
  with exit_codes.interruptible_process():
    return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
  import logging

  from elasticface_jax import exit_codes, missing, runtime

  runtime.set_environment()
  # Orbax logs at length through absl what is printed here in one line.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  args, rest = _parser().parse_known_args(argv)
  if rest and args.command not in ('train', 'study', 'plan'):
    return exit_codes.fail(
      f'unknown argument {rest[0]!r}; see elasticface {args.command} --help'
    )

  def command():
    with missing.needs(args.command):
      args.run(args, rest)

  return exit_codes.run(command)


def _parser():
  from elasticface_jax.commands import _parser  # Imports all commands.

  return _parser.make()


if __name__ == '__main__':
  sys.exit(main())
