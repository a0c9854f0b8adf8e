"""The page of one image."""

from flask import Blueprint

blueprint = Blueprint("image", __name__)
