# SPDX-License-Identifier: Apache-2.0
"""Tools for data sets: inspection, and preparation of shards.

- `inspection`: reads and checks every image of a data set or a pair set.
- `walks`: the entries of a data set, and the findings about each.
- `classes`: what the labels say about the number of classes.
- `clean_copy`: the intact images, once each, with the table of their labels.
- `report`: the result of an inspection as text, JSON and a figure (`plots`).
- `prepare`: writes any source as TFDS shards, on one machine.
- `aligned_faces`: the TFDS builder, for `tfds build` and for Beam.
"""
