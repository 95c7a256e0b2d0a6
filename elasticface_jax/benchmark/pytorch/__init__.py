# SPDX-License-Identifier: Apache-2.0
"""The PyTorch twin: network, losses and training step as PyTorch users write.

`elasticface benchmark --against torch` times it next to ours,
`benchmarks/loss_speed.py` times its losses, and `checks/torch_trace` compares
training with it step by step. torch is imported where it is used: nothing else
needs it.
"""
