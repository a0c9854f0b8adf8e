#!/bin/sh
# Copy or export the model that MODEL names to the directory $1, for the CPU runtime.
set -eu
target=$1
fail() { echo "error: $*" >&2; exit 1; }

case "$MODEL" in
  '' | *_openvino_model | *_openvino_model/)
    [ -z "$CALIBRATION" ] || fail "CALIBRATION=$CALIBRATION needs weights to quantise: set MODEL to a .pt file"
    if [ -z "$MODEL" ]; then
      python -m pip install --quiet --no-deps --no-index --target /bundled /wheels/*.whl
      MODEL=/bundled/service/bundled_model
    fi
    [ -f "$MODEL/metadata.yaml" ] || fail "MODEL=$MODEL is not an exported model in models/"
    cp -R "$MODEL" "$target"
    ;;
  *)
    case "$MODEL" in */*) [ -f "$MODEL" ] || fail "there is no file MODEL=$MODEL. Put it into models/" ;; esac
    [ -z "$CALIBRATION" ] || [ -d "$CALIBRATION" ] \
      || fail "there is no folder CALIBRATION=$CALIBRATION. Put it into models/"
    python -m pip --python /opt/export/bin/python install --quiet --no-deps --no-index /wheels/*.whl
    set -- "$MODEL" --output "$target"
    [ -z "${IMAGE_SIZE:-}" ] || set -- "$@" --image-size "$IMAGE_SIZE"
    [ -z "$CALIBRATION" ] || set -- "$@" --precision int8 --calibration "$CALIBRATION"
    /opt/export/bin/yolo-batch export "$@"
    ;;
esac
# The service runs as another user, who needs read permission.
chmod -R a+rX "$target"
