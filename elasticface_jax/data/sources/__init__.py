# SPDX-License-Identifier: Apache-2.0
"""Sources of training images: one file a format, and what they share."""
