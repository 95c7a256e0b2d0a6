# SPDX-License-Identifier: Apache-2.0
"""Strict settings for every test: hidden broadcasts and reused keys raise."""

import os

# Before jax is imported. Eight fake devices on two cores starve each other
# unless the runtime may use more threads than there are cores.
os.environ['PJRT_NPROC'] = '32'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_debug_key_reuse', True)
jax.config.update('jax_legacy_prng_key', 'error')
