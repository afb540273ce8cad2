"""The blocks of the README run, one after another, as a reader would type them; training is cut short."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    part.strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() for part in line.split("&&")
]
# What installs, tests, needs docker, or measures for minutes or an hour; benchmark and ablate have tests of their own
NOT_HERE = (
    "dropkey ablate --config digits_few_images",
    "python",
    "source",
    "pip",
    "docker",
    "mkdir",
    "-v",
    "dropkey benchmark",
    "dropkey fit --data.root /data",
)
SHORT = (
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=2",
    "--trainer.accelerator=cpu",
    "--data.num_workers=0",
)


def photos(folder: Path) -> None:
    """Two classes of ten coloured pictures."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 128, (40, 50, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def test_python_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "blocks.0.attn 197 197 0.1" in capsys.readouterr().out


@pytest.mark.slow
def test_commands_run_one_after_another(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "tests" / "images", tmp_path / "tests" / "images")
    photos(tmp_path / "photos")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [line for line in COMMANDS if line and not line.startswith(NOT_HERE)]
    assert len(run) > 10
    for line in run:
        program, *words = shlex.split(line)
        assert program == "dropkey", line
        if words[0] in ("fit", "ablate"):
            words += [*SHORT, *(() if "--resume" in words else ("--trainer.max_epochs=1", "--model.pretrained=false"))]
        if words[0] == "ablate":
            words += ["--seeds=1"]
        done = subprocess.run(
            [sys.executable, "-m", "dropkey_cli", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == len(
        list((tmp_path / "tests" / "images").glob("*.png"))
    )
