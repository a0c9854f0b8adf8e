"""Removes files that the CPU runtime never loads: prune.py SITE_PACKAGES.

A pattern without a match fails the build, because a new version of a package has moved its files.
Licences are kept.
"""

import shutil
import sys
from pathlib import Path

UNUSED = (
    # Inference runs on the CPU, and the model is in OpenVINO's own format.
    "openvino/libs/libopenvino_intel_gpu_plugin.so",
    "openvino/libs/cache.json",  # the GPU plugin's kernels
    "openvino/libs/libopenvino_intel_npu_plugin.so",
    "openvino/libs/libopenvino_auto*_plugin.so",
    "openvino/libs/libopenvino_hetero_plugin.so",
    "openvino/libs/libopenvino_*_frontend.so.*",
    "openvino/frontend/*/py_*_frontend*.so",
    # Development files of every package.
    "**/*.pyi",
    "**/tests",
    "**/*.pyx",
    "**/*.pxd",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/random/lib",
    "numpy/f2py",
    "cv2/data",
)
USED = ("openvino/libs/libopenvino_ir_frontend.so.*",)


def main() -> None:
    """Remove the files that match UNUSED in the given directory."""
    root = Path(sys.argv[1])
    kept = {path for pattern in USED for path in root.glob(pattern)}
    freed = 0
    for pattern in UNUSED:
        paths = [path for path in root.glob(pattern) if path not in kept]
        if not paths:
            sys.exit(f"error: prune.py: nothing matches {pattern} in {root}")
        for path in paths:
            if path.is_dir():
                freed += sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
                shutil.rmtree(path)
            elif path.exists():  # not yet removed with its directory
                freed += path.stat().st_size
                path.unlink()
    sys.stdout.write(f"prune.py: {freed / 1e6:.0f} MB removed\n")


if __name__ == "__main__":
    main()
