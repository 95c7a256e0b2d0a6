# SPDX-License-Identifier: Apache-2.0
"""Commands of `elasticface`, one a file.

Each has ``add_arguments(parser)`` and ``run(args, rest)``. What takes time to
import, or what a bare install lacks, is imported inside ``run``: so ``--help``
is quick, and a missing extra ends in one line.
"""
