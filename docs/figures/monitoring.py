"""Draws the pictures of docs/monitoring.md, by its examples: docs/images/monitoring-*.png.

python docs/figures/monitoring.py
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
PICTURES = ("rates", "raster", "membranes")


def main() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "monitoring.md").read_text(), re.DOTALL)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec("\n".join(blocks), {})
        finally:
            os.chdir(before)
        for name in PICTURES:
            shutil.copyfile(Path(folder) / f"{name}.png", DOCS / "images" / f"monitoring-{name}.png")


if __name__ == "__main__":
    main()
