# SPDX-License-Identifier: Apache-2.0
"""Plans: what a training step costs on hardware that is not here."""
