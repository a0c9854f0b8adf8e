"""The images that failed, that are parked, and that have no result."""

from flask import Blueprint

blueprint = Blueprint("problems", __name__)
