#!/bin/sh
# Install ultralytics and torch, which have several GB, if MODEL names weights to export.
set -eu
case "$MODEL" in
  '' | *_openvino_model | *_openvino_model/) echo "MODEL='$MODEL' needs no export" ;;
  *)
    python -m venv --without-pip /opt/export
    python -m pip --python /opt/export/bin/python install --quiet --no-deps --require-hashes \
      --requirement requirements/export.txt
    ;;
esac
