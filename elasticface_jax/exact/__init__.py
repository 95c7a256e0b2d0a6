# SPDX-License-Identifier: Apache-2.0
"""Loops and sums whose bits do not depend on the number of devices.

The ground floor of the package: `loops` runs groups of samples and blocks of
classes one after another with the same compiled arithmetic however many a
device holds; `trees` adds their results in an order that no hardware changes.
Imports jax and NumPy alone.
"""
