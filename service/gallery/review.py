"""The pages on which people judge results, and what their verdicts show."""

from flask import Blueprint

blueprint = Blueprint("review", __name__)
