"""The image is built from what is pinned by hash, and the lock holds what the package asks for."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LOCKED = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_base_image_is_pinned_by_digest() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE}", "base", "base"]
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)


def test_every_locked_package_has_a_hash() -> None:
    blocks = re.split(r"^(?=[a-z0-9-]+==)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(blocks) == len(LOCKED) > 50
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_the_lock_satisfies_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in ("onnx", "parquet", "tensorboard") for line in project["optional-dependencies"][extra]]
    asked = [Requirement(line) for line in [*project["dependencies"], *extras]]
    unmet = [str(need) for need in asked if not need.specifier.contains(LOCKED.get(need.name, "0"))]
    assert unmet == []
