#!/usr/bin/env bash
# What only a GPU can show, in eight minutes: bash benchmarks/gpu.sh OUT [PART ...]
# Needs a Python with torch >= 2.6, numpy, hydra-core, omegaconf and lightning-fabric. PYTHON picks it.
# OUT gets gpu.json and gpu.md. Without a GPU everything runs in small sizes under fake CUDA.
set -euo pipefail
if [ $# -lt 1 ]; then
  echo "usage: bash benchmarks/gpu.sh OUT [PART ...]" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
exec "$python" benchmarks/gpu.py "$out" "$@"
