#!/usr/bin/env bash
# Measures the sweep on a GPU in less than ten minutes: what Python costs in it, then all
# K beside PyTorch. Flags are those of `python -m experiments.bench`:
#
#     pip install -e '.[cuda,bench]'
#     experiments/bench/gpu.sh --init_from=cifar_vgg.h5
set -euo pipefail
cd "$(dirname "$0")/../.."
python - <<'EOF'
import sys
import jax
if jax.default_backend() != "gpu":
    print(f"error: JAX finds no GPU here, but {jax.devices()}", file=sys.stderr)
    sys.exit(2)
EOF
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
python -m experiments.bench --what=host
python -m experiments.bench --noscaling "$@"
