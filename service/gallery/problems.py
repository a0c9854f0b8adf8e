"""The images that failed, that are parked, and that have no result."""

from flask import Blueprint, render_template

blueprint = Blueprint("problems", __name__)


@blueprint.get("/problems")
def page() -> str:
    """Show the page."""
    return render_template("problems.html")
