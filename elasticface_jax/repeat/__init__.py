# SPDX-License-Identifier: Apache-2.0
"""Repetition of a run: trained again, and compared bit for bit.

`expected` reads what a run has recorded, `pack` makes one file of it, `work`
checks software, platform and data, and trains, and `comparison` compares.
"""
