"""The grid of thumbnails, the pages that it loads, and the counts of labels."""

from flask import Blueprint

blueprint = Blueprint("grid", __name__)
