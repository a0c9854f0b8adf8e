"""Geometry of zones: points in polygons, and the overlap of a box and a polygon.

A polygon is a sequence of at least three points in order, without the first point at its end.
"""

from collections.abc import Sequence
from itertools import combinations

Point = tuple[float, float]
_ON_EDGE = 1e-9  # a distance. Coordinates are between 0 and 1.
_MIN_AREA = 1e-9  # less than one pixel of an image of 30,000 x 30,000 pixels


def contains(polygon: Sequence[Point], point: Point) -> bool:
    """Return whether a point is inside of a polygon (even-odd rule) or on its edge."""
    x, y = point
    is_inside = False
    for (x1, y1), (x2, y2) in _edges(polygon):
        is_near = min(x1, x2) - _ON_EDGE <= x <= max(x1, x2) + _ON_EDGE
        if is_near and _distance_squared(point, (x1, y1), (x2, y2)) <= _ON_EDGE**2:
            return True
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            is_inside = not is_inside
    return is_inside


def area(polygon: Sequence[Point]) -> float:
    """Return the area of a polygon that does not cross itself (shoelace formula)."""
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in _edges(polygon))) / 2


def overlap_area(polygon: Sequence[Point], low: Point, high: Point) -> float:
    """Return the area of a polygon inside of a box with the corners `low` and `high`.

    The polygon is clipped at each side of the box (Sutherland and Hodgman, 1974). The clipped
    polygon may have edges that lie on each other. They add nothing to the area.
    """
    clipped = list(polygon)
    for axis in (0, 1):
        for limit, sign in ((low[axis], 1), (high[axis], -1)):
            clipped = _clip(clipped, axis, limit, sign)
    return area(clipped) if clipped else 0.0


def fault(polygon: Sequence[Point]) -> str | None:
    """Return why a zone cannot have this polygon, or None if it can.

    The number of comparisons grows with the square of the number of points.
    """
    if len(set(polygon)) < len(polygon):
        return "the polygon has a point twice. Do not repeat the first point at the end"
    edges = list(_edges(polygon))
    for (i, first), (j, second) in combinations(enumerate(edges), 2):
        are_neighbours = j - i in (1, len(edges) - 1)
        if _turns_back(first, second) if are_neighbours else _touch(first, second):
            return f"the polygon crosses or touches itself, at its points {i + 1} and {j + 1}"
    if area(polygon) < _MIN_AREA:
        return "the polygon has no area"
    return None


_Edge = tuple[Point, Point]


def _edges(polygon: Sequence[Point]) -> list[_Edge]:
    return [(polygon[i - 1], point) for i, point in enumerate(polygon)] if polygon else []


def _clip(polygon: Sequence[Point], axis: int, limit: float, sign: int) -> list[Point]:
    """Return the part of a polygon on one side of a vertical or horizontal line."""
    clipped: list[Point] = []
    for start, end in _edges(polygon):
        before, after = sign * (start[axis] - limit), sign * (end[axis] - limit)
        if (before < 0) != (after < 0):
            share = before / (before - after)
            crossing = [a + share * (b - a) for a, b in zip(start, end, strict=True)]
            crossing[axis] = limit
            clipped.append((crossing[0], crossing[1]))
        if after >= 0:
            clipped.append(end)
    return clipped


def _distance_squared(point: Point, start: Point, end: Point) -> float:
    """Return the square of the distance between a point and an edge."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length_squared = dx * dx + dy * dy
    share = 0.0
    if length_squared:
        share = ((point[0] - start[0]) * dx + (point[1] - start[1]) * dy) / length_squared
    share = min(max(share, 0.0), 1.0)
    x, y = start[0] + share * dx - point[0], start[1] + share * dy - point[1]
    return x * x + y * y


def _side(a: Point, b: Point, c: Point) -> float:
    """Return on which side of the line from a to b the point c is: its sign, or 0 on the line."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _touch(first: _Edge, second: _Edge) -> bool:
    """Return whether two edges have a point in common."""
    a, b = first
    c, d = second
    sides = _side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)
    if not any(sides):  # on one line
        return all(
            max(min(p[i] for p in first), min(p[i] for p in second))
            <= min(max(p[i] for p in first), max(p[i] for p in second))
            for i in (0, 1)
        )
    return sides[0] * sides[1] <= 0 and sides[2] * sides[3] <= 0


def _turns_back(first: _Edge, second: _Edge) -> bool:
    """Return whether two edges with a point in common also have other points in common."""
    [shared] = {*first} & {*second}
    [start] = {*first} - {shared}
    [end] = {*second} - {shared}
    ahead = (start[0] - shared[0]) * (end[0] - shared[0])
    ahead += (start[1] - shared[1]) * (end[1] - shared[1])
    return _side(start, shared, end) == 0 and ahead > 0
