#!/usr/bin/env bash
# The whole recipe at 600 pixels on one GPU, with the tests and timings that need one:
#
#   DETECTRON2_DATASETS=/path/to/datasets tools/train_on_gpu.sh OUTPUT
#
# Run it again after an interruption: finished steps are left out, an unfinished training goes on
# from its last checkpoint. Nothing is downloaded if WEIGHTS names a file of ImageNet weights
# (`tools/convert_weights.py` makes one). Minutes a step are in OUTPUT/minutes.txt, metrics in each
# step's folder. SPLIT=val trains on all of train and evaluates on val; SPLIT=overfit takes 227 images.
# A trial on the CPU: DEVICE=cpu SIZE=64 SPLIT=overfit with DETECTOR_ITERS, HEADS_ITERS and
# JOINT_ITERS of 2.
#
# The learning rates and anchors scale those for 288 pixels. None of it has been trained on a GPU yet.
set -euo pipefail

out=${1:?usage: tools/train_on_gpu.sh OUTPUT}
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
size=${SIZE:-600}
weights=${WEIGHTS:-regiondh://imagenet/tf_efficientnet_lite0}
split=${SPLIT:-dev}
anchors='[[32, 64, 128, 256, 512]]'
cd "$(dirname "$0")/.."
case $split in
  dev) train='("regiondh_voc_2007_train_base",)'; test='("voc_2007_retrieval_train_dev",)' ;;
  val) train='("regiondh_voc_2007_train",)'; test='("voc_2007_retrieval_train_val",)' ;;
  overfit) train='("regiondh_voc_2007_overfit",)'; test='("voc_2007_retrieval_overfit",)' ;;
  *) echo "SPLIT is $split: it takes dev, val or overfit" >&2; exit 2 ;;
esac
amp=False
if [[ $device == cuda* ]]; then amp=True; fi
mkdir -p "$out"

# step NAME COMMAND...: run it unless it is done.
step() {
  local name=$1 began=$SECONDS
  shift
  if [[ -e $out/$name.done ]]; then
    echo "$name: done before"
    return
  fi
  echo "$name: $*"
  "$@"
  echo "$name $(((SECONDS - began) / 60))" >> "$out/minutes.txt"
  touch "$out/$name.done"
}

# train NAME CONFIG KEY VALUE...
train() {
  local name=$1 config=$2
  shift 2
  step "$name" "$python" tools/train_net.py --resume --config-file "configs/voc07/$config.yaml" \
    MODEL.DEVICE "$device" OUTPUT_DIR "$out/$name" SEED 0 \
    INPUT.MIN_SIZE_TRAIN "($size,)" INPUT.MAX_SIZE_TRAIN $((size * 5 / 3)) \
    INPUT.MIN_SIZE_TEST "$size" INPUT.MAX_SIZE_TEST $((size * 5 / 3)) \
    MODEL.ANCHOR_GENERATOR.SIZES "$anchors" \
    DATASETS.TRAIN "$train" DATASETS.TEST "$test" "$@"
}

if [[ $device == cuda* ]]; then
  step tests "$python" -m pytest -q tests/test_mixed_precision.py tests/test_distributed.py \
    tests/test_checkpoint.py
fi
# 16 images at the rate for 8: three times as many passes as the recipe for CPUs.
train detector detector_effnetlite0 MODEL.WEIGHTS "$weights" DATASETS.TEST '()' \
  SOLVER.AMP.ENABLED "$amp" DATALOADER.NUM_WORKERS 8 \
  SOLVER.IMS_PER_BATCH 16 SOLVER.MAX_ITER "${DETECTOR_ITERS:-2500}"
train heads regiondh_effnetlite0_48 MODEL.WEIGHTS "$out/detector/model_final.pth" \
  MODEL.REGION_DH.FEATURE_CACHE "$out/cache" SOLVER.MAX_ITER "${HEADS_ITERS:-1500}"
train joint regiondh_effnetlite0_48_joint MODEL.WEIGHTS "$out/heads/model_final.pth" \
  SOLVER.AMP.ENABLED "$amp" DATALOADER.NUM_WORKERS 8 SOLVER.MAX_ITER "${JOINT_ITERS:-1000}"
# Seconds a training step are "time" in each metrics.json; these are milliseconds an image.
step timings "$python" tools/analyze_model.py --tasks time --json "$out/timings.json" \
  --config-file configs/voc07/regiondh_effnetlite0_48.yaml MODEL.DEVICE "$device" \
  MODEL.WEIGHTS "$out/heads/model_final.pth" INPUT.MIN_SIZE_TEST "$size" \
  INPUT.MAX_SIZE_TEST $((size * 5 / 3)) MODEL.ANCHOR_GENERATOR.SIZES "$anchors"
