#!/usr/bin/env bash
# Speed against MONAI and diffusers on one GPU, in some six minutes, and what compiling ours takes: a
# forward and a training step of the same network, a whole volume, reading. Tables in OUTPUT/*.md.
#
#   bash scripts/gpu_benchmark.sh PATIENTS OUTPUT
#
# SIDE=32 SIZE=32 CONFIG=configs/backbone/unet_tiny.yaml tries the same on a CPU.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
patients=$1 output=$2
config=${CONFIG:-configs/backbone/unet.yaml} size=${SIZE:-192}

python scripts/bench_peers.py --size "${SIDE:-256}" --compile --output "$output"
python scripts/bench_sampling.py "$patients" --config "$config" --image-size "$size" --output "$output"
python scripts/bench_data.py "$patients" --size "$size" --output "$output"
