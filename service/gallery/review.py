"""The pages on which people judge results, and what their verdicts show."""

from flask import Blueprint, render_template

blueprint = Blueprint("review", __name__)


@blueprint.get("/review")
def page() -> str:
    """Show the page."""
    return render_template("review.html")
