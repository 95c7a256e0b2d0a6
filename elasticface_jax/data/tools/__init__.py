# SPDX-License-Identifier: Apache-2.0
"""Tools on data sets: inspection, preparation of shards, a TFDS builder."""
