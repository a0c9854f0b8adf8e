"""Run with the Python of frictionless: validates a package against table schemas, and reads it.

Arguments: folder of the package, and a JSON file with the schemas by table. Prints JSON.
"""

import json
import sys
from pathlib import Path

from frictionless import Package

folder, schemas = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
descriptor = json.loads((folder / "datapackage.json").read_text(encoding="utf-8"))
for resource in descriptor["resources"]:
    resource["schema"] = schemas[resource["name"]]  # the address is on the network
del descriptor["profile"]  # so is that of the profile
package = Package.from_descriptor(descriptor, basepath=str(folder))
report = package.validate()
errors = [error.message for task in report.tasks for error in task.errors]
errors += [error.message for error in report.errors]
tables = {
    resource.name: [row.to_dict(json=True) for row in resource.read_rows()]
    for resource in package.resources
}
print(json.dumps({"valid": report.valid, "errors": errors, "tables": tables}))
