"""The gallery: web pages that show results, let people judge them, and export them."""
