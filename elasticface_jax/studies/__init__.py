# SPDX-License-Identifier: Apache-2.0
"""Studies: configs x seeds, and what their results tell."""
