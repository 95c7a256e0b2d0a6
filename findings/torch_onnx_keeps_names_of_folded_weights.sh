#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# torch.onnx.export folds BatchNorm into the convolution before it. The newer
# exporter (dynamo=True, the default since 2.9) stores the product under the name
# of the parameter, `0.weight`: whoever reads the weights of a file by the names
# of the module gets others, of the right shape, without a word, and finds no
# BatchNorm. With optimize=False the same name has the parameter's values. The
# older exporter (dynamo=False) gives folded arrays names of its own.
#
# Seen with torch 2.13.0, onnxscript 0.7.2 and onnx 1.23.2, Python 3.11.
#
# Who meets it: whoever brings weights back from an ONNX file, or compares a
# file with a checkpoint name by name.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 onnxscript==0.7.2 \
  onnx==1.23.2
cat >"$folder/try.py" <<'PYTHON'
import sys
import warnings

import numpy as np
import onnx
import torch

warnings.simplefilter('ignore')
torch.manual_seed(0)
module = torch.nn.Sequential(
  torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4)
)
module[1].running_var.fill_(4.0)
module.eval()
images = torch.randn(2, 3, 8, 8)
weight = module[0].weight.detach().numpy()


def exported(**options):
  """Returns the arrays of a file by their names."""
  path = f'{sys.argv[1]}/module.onnx'
  torch.onnx.export(module, (images,), path, verbose=False, **options)
  arrays = onnx.load(path).graph.initializer
  return {a.name: onnx.numpy_helper.to_array(a) for a in arrays}


newer = exported(dynamo=True)
plain = exported(dynamo=True, optimize=False)
older = exported(dynamo=False)
ratio = newer['0.weight'] / weight
print('newer exporter:', sorted(newer), f'0.weight is {ratio.mean():.3f} times')
print('optimize=False:', sorted(plain))
print('older exporter:', sorted(older))
as_described = (
  np.allclose(ratio, 0.5, 1e-3)
  and '1.running_var' not in newer
  and np.array_equal(plain['0.weight'], weight)
  and '0.weight' not in older
)
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder"
