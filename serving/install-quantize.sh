#!/bin/sh
# Build the venv of llmcompressor, which `llmops export --as compressed` quantises with.
#
#   sh serving/install-quantize.sh [VENV]        default VENV: .venv-quantize beside the lock file
#
# Needs about 1.5 GB. PYTHON names the interpreter (3.11 or newer). Runs again in a moment when nothing has changed.
# On an index that offers torch with CUDA only, point PIP_EXTRA_INDEX_URL at PyTorch's index of CPU wheels first.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
lock=$root/requirements-quantize.lock
venv=${1:-$root/.venv-quantize}
python=${PYTHON:-python3}
stamp=$venv/.llmops-lock

[ -f "$lock" ] || { echo "install-quantize: $lock is missing; run from a checkout of llmops" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install-quantize: $python is older than 3.11; set PYTHON to a newer one" >&2; exit 2; }

if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && cmp -s "$lock" "$stamp"; then
    echo "install-quantize: $venv is up to date"
    exit 0
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$lock"
"$venv/bin/python" -c 'import torch, llmcompressor' || {
    echo "install-quantize: $venv does not import torch and llmcompressor; remove it and run again" >&2; exit 5; }
cp "$lock" "$stamp"
echo "install-quantize: llmcompressor $(sed -n 's/^llmcompressor==//p' "$lock") is in $venv"
