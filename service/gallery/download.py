"""The export of what a page shows."""

from flask import Blueprint

blueprint = Blueprint("download", __name__)
