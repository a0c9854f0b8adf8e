"""Lists the sizes of the parts of a container image. Run it inside a container.

docker run --rm --interactive IMAGE python - < container/contents.py
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

STANDARD_LIBRARY = Path(sys.base_prefix, "lib", f"python3.{sys.version_info.minor}")
SITE_PACKAGES = Path("/opt/yolo-batch/lib", STANDARD_LIBRARY.name, "site-packages")
SHOWN = 14


def files(root: Path) -> Iterator[Path]:
    """Return the regular files below a directory, at any depth."""
    return (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def package_of(path: Path) -> str:
    """Return the package that a file of site-packages belongs to, or is bundled with."""
    first = path.relative_to(SITE_PACKAGES).parts[0].partition(".libs")[0]
    return {"cv2": "opencv", "opencv_python_headless": "opencv", "PIL": "pillow"}.get(first, first)


def main() -> None:
    """Print the parts as a Markdown table, largest first."""
    sizes: Counter[str] = Counter()
    for path in files(SITE_PACKAGES):
        part = "bytecode of the packages" if path.suffix == ".pyc" else package_of(path)
        sizes[part] += path.stat().st_size
    for path in files(STANDARD_LIBRARY):
        if path.suffix == ".pyc":
            sizes["bytecode of the standard library"] += path.stat().st_size
    for name, root in {"model": "/model", "yolo-batch itself": "/app"}.items():
        sizes[name] = sum(path.stat().st_size for path in files(Path(root)))
    rows = sizes.most_common(SHOWN)
    rows.append(("the rest", sizes.total() - sum(size for _, size in rows)))
    rows.append(("total", sizes.total()))
    sys.stdout.write("| part | MB |\n|---|---|\n")
    for part, size in rows:
        sys.stdout.write(f"| {part} | {size / 1e6:.1f} |\n")


if __name__ == "__main__":
    main()
