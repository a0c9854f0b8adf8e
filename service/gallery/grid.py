"""The grid of thumbnails, the pages that it loads, and the counts of labels."""

from flask import Blueprint, render_template

blueprint = Blueprint("grid", __name__)


@blueprint.get("/")
def page() -> str:
    """Show the page."""
    return render_template("grid.html")
