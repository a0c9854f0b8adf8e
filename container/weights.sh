#!/bin/sh
# Copy the weights that MODEL names to the directory $1. MODEL is a file of models/ or an official name.
# ultralytics downloads an official model now, so that the service does not download it at each start.
set -eu
target=$1
fail() { echo "error: $*" >&2; exit 1; }

case "$MODEL" in
  *_openvino_model*) fail "MODEL=$MODEL runs only on a CPU (--target cpu). For a GPU, use .pt" ;;
  *.engine | *.onnx)
    fail "the container image has neither TensorRT nor ONNX Runtime: set MODEL to the .pt file" ;;
  /* | ../* | */../*) fail "MODEL=$MODEL must be an official name or a file of models/" ;;
  */*) [ -f "$MODEL" ] || fail "there is no file MODEL=$MODEL. Put it into models/" ;;
  *.pt) python -c 'import sys; from ultralytics import YOLO; YOLO(sys.argv[1])' "$MODEL" ;;
  *) fail "MODEL=$MODEL is neither an official name, for example yolo26n.pt, nor a file of models/" ;;
esac
mkdir -p "$target/$(dirname "$MODEL")"
cp "$MODEL" "$target/$MODEL"
chmod -R a+rX "$target"
