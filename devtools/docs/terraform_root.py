"""The root module in `terraform/`: it configures the providers and passes every variable on.

Terraform cannot say "every variable of the module", so these files are written from the module.
"""

import re
from pathlib import Path

from devtools.docs.terraform import MODULE, blocks_of

ROOT = Path(__file__).parents[2] / "terraform"
_HEAD = "# Written by `python -m devtools.docs` from modules/yolo-batch. Change it there.\n\n"
_VALIDATION = re.compile(r"\n*^  validation \{$.*?^  \}$", re.MULTILINE | re.DOTALL)
_MAIN = """\
# A user's own credentials name no project whose quota a call uses, so some APIs would reject it.
provider "google" {
  project               = var.project_id
  region                = var.region
  billing_project       = var.project_id
  user_project_override = true
}

provider "google-beta" {
  project               = var.project_id
  region                = var.region
  billing_project       = var.project_id
  user_project_override = true
}

module "yolo_batch" {
  source = "./modules/yolo-batch"

"""


def files() -> dict[Path, str]:
    """Return the files of the root module, with their texts.

    The variables have no validations, because the module validates the same values.
    """
    variables = (MODULE / "variables.tf").read_text(encoding="utf-8")
    names = _names(MODULE / "variables.tf", "variable")
    width = max(map(len, names))
    passed = "".join(f"  {name:<{width}} = var.{name}\n" for name in names)
    outputs = "\n".join(
        f'output "{name}" {{\n'
        f'  description = "{body["description"]}"\n'
        f"  value       = module.yolo_batch.{name}\n"
        "}\n"
        for block in blocks_of(MODULE / "outputs.tf", "output")
        for name, body in block.items()
    )
    return {
        ROOT / "main.tf": f"{_HEAD}{_MAIN}{passed}}}\n",
        ROOT / "outputs.tf": f"{_HEAD}{outputs}",
        ROOT / "variables.tf": _HEAD + _VALIDATION.sub("", variables),
    }


def _names(path: Path, kind: str) -> list[str]:
    return [name for block in blocks_of(path, kind) for name in block]
