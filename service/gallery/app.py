"""The Flask application of the gallery."""

from flask import Flask

from service.gallery import download, grid, image, problems, review
from service.gallery.parts import GalleryParts


def create_app(gallery: GalleryParts) -> Flask:
    """Return the application. Each page has a module with a blueprint of its own."""
    app = Flask(__name__)
    app.extensions["gallery"] = gallery
    for page in (grid, image, problems, review, download):
        app.register_blueprint(page.blueprint)
    return app
