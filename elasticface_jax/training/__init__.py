# SPDX-License-Identifier: Apache-2.0
"""The training step over groups and blocks, and the loop around it."""
