# SPDX-License-Identifier: Apache-2.0
"""ElasticFace for JAX: margin losses, a trainer, and one fingerprint a run.

Import the room you need: ``elasticface_jax.losses`` needs only jax.
"""

__version__ = '0.1.0'
