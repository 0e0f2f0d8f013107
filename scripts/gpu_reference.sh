#!/usr/bin/env bash
# Trains, samples, times and judges the backbones of the mission at paper size, for some 8 minutes on
# one GPU: images, VRAM and seconds of each in OUTPUT/report.html, benchmark.md and cost.md.
#
#   bash scripts/gpu_reference.sh PATIENTS OUTPUT [KEY=VALUE ...]
#
# SIZE=_tiny EACH=3 tries the same on a CPU. EACH: seconds of training a backbone.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
patients=$1 output=$2
shift 2
kept="unet disc-unet ds-unet dit vit transformer hybrid attention-unet"

plan=(budget.steps=null "budget.seconds=${EACH:-30}" timing=3 regression_of=null)
for row in $(sed -n 's/^  \([a-z0-9-]*\): {config: .*/\1/p' configs/benchmark_families.yaml); do
  case " $kept " in
    *" $row "*) plan+=("rows.$row.config=configs/backbone/${row//-/_}${SIZE:-}.yaml") ;;
    *) plan+=("rows.$row=null") ;;
  esac
done
mkdir -p "$output"
{ date -u +%FT%TZ; git rev-parse --short HEAD; nvidia-smi -L 2>/dev/null || echo "no GPU"; } | tee "$output/machine.txt"
dsdiff benchmark configs/benchmark_families.yaml "data.params.root=$patients" "${plan[@]}" "$@" --output "$output"
