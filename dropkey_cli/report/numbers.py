"""``metrics.json``: the numbers of a report by name, for scripts."""

import json
import math
from pathlib import Path
from typing import Any

from dropkey_cli.files import whole_file


def read_numbers(folder: Path) -> dict[str, Any]:
    """What the file in a report's folder says; nothing if it is not there."""
    path = folder / "metrics.json"
    numbers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return numbers


def write_numbers(folder: Path, numbers: dict[str, Any]) -> None:
    """Write the file, whole or not at all; NaN and infinity become null, as JSON has neither."""
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
    with whole_file(folder / "metrics.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(finite, indent=2) + "\n")
