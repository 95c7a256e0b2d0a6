#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# One command on all workers of a Cloud TPU VM, where each finds the others:
#
#   launch/tpu_pod.sh elasticface train --config FILE --workdir /shared/W [...]
#
# Copies this checkout to every worker, installs it there the first time and
# when setup.cfg has changed, and runs the command in it.
#
# Ctrl-C ends this script, not the run on the workers. To stop the run, with its
# step saved:
#
#   launch/tpu_pod.sh stop
set -euo pipefail

# Edit, or set in the environment.
TPU=${TPU:-elasticface}   # Name of the TPU VM.
ZONE=${ZONE:-us-west4-a}  # Where it is.
PYTHON=${PYTHON:-3.12}    # uv fetches it where the workers lack it.
EXTRAS=${EXTRAS:-train,tpu}

if (($# == 0)); then
  echo 'usage: launch/tpu_pod.sh COMMAND [ARGUMENT ...] | stop' >&2
  exit 2
fi

on_workers() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="$1"
}

if [ "$*" = stop ]; then
  # The brackets keep pkill from finding its own shell.
  on_workers "pkill -TERM -f '[e]lasticface (train|study)'"
  exit
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tar -czf "$folder/elasticface.tgz" -C "$(dirname "$0")/.." \
  --exclude='__pycache__' \
  elasticface_jax configs setup.cfg setup.py pyproject.toml README.md LICENSE
gcloud compute tpus tpu-vm scp "$folder/elasticface.tgz" "$TPU:" \
  --zone="$ZONE" --worker=all

# %q quotes once for the shell of the workers; `exec` leaves one process, the
# one that `stop` finds.
on_workers "set -e
mkdir -p ~/elasticface
cd ~/elasticface
tar -xzf ~/elasticface.tgz
if ! cmp -s setup.cfg venv/setup.cfg; then
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --clear --python $(printf %q "$PYTHON") venv
  python3 -m uv pip install --quiet --python venv/bin/python \\
    -e $(printf %q ".[$EXTRAS]")
  cp setup.cfg venv/setup.cfg
fi
. venv/bin/activate
exec$(printf ' %q' "$@")"
