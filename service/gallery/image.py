"""The page of one image."""

from flask import Blueprint, render_template

blueprint = Blueprint("image", __name__)


@blueprint.get("/image/<document_id>")
def page(document_id: str) -> str:
    """Show the page."""
    return render_template("base.html", document_id=document_id)
