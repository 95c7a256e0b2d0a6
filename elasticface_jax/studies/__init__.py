# SPDX-License-Identifier: Apache-2.0
"""Studies: configs times seeds in one folder, one run folder each.

Runs of one seed share all that their configs let them share, so that they can
be compared in pairs.
"""
