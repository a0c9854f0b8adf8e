"""Run with the Python of megadetector-utils: validates a file, and loads it as a table.

Arguments: the file. Prints JSON.
"""

import contextlib
import json
import sys

from megadetector.postprocessing.load_api_results import load_api_results
from megadetector.postprocessing.validate_batch_results import validate_batch_results

with contextlib.redirect_stdout(sys.stderr):  # both print what they do
    validated = validate_batch_results(sys.argv[1])["validation_results"]
    table, fields = load_api_results(sys.argv[1])
rows = json.loads(table.to_json(orient="records"))
print(json.dumps({"validation": validated, "rows": rows, "fields": fields}))
