import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from dropkey_cli.models import availability
from tests.commands.conftest import QUICKSTART, Dropkey
from tests.export import checkpoints

Refused = Callable[..., str]
SEVEN = str(Path(__file__).parents[1] / "images" / "seven.png")


def test_what_timm_makes_of_a_run_predicts_what_dropkey_predicts(trained: Path, dropkey: Dropkey) -> None:
    run = str(trained / "runs/quickstart/version_0")
    outcome = dropkey("export", "--ckpt-path", run, "--output", "lions", "--images", SEVEN)
    assert outcome.code == 0, outcome.err
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines() if not line.startswith(" "))
    assert lines["compared"].startswith(f"on 1 image of {SEVEN}")
    assert lines["timm"].startswith("lions/model.safetensors, ")
    assert "largest difference 0, " in lines["timm"]
    assert lines["use"] == 'timm.create_model("local-dir:lions", pretrained=True)'
    assert dropkey("predict", "--ckpt_path", run, "--data.root", SEVEN, "--top_k=1").code == 0
    with Path("predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    model: Any = timm.create_model("local-dir:lions", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        probabilities = model(transform(Image.open(SEVEN).convert("RGB"))[None]).softmax(-1)[0]
    assert model.pretrained_cfg["label_names"][int(probabilities.argmax())] == row["prediction"]
    assert probabilities.max().item() == pytest.approx(float(row["probability"]), abs=1e-4)
    card = Path("lions/README.md").read_text(encoding="utf-8")
    assert "train 1079, val 359, test 359" in card
    assert "| val/loss |" in card


def test_a_folder_is_fine_tuned_and_then_needed_no_more(dropkey: Dropkey, tmp_path: Path) -> None:
    name, args, _ = checkpoints.NETWORKS["vit"]
    digits = [str(digit) for digit in range(10)]
    network = checkpoints.seeded_network(name, args, 16, num_classes=10)
    model = {"name": name, "args": args, "image_size": 16}
    checkpoints.save(tmp_path / "a.ckpt", model=model, class_names=digits)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["state_dict"] = {f"network.{key}": value for key, value in network.state_dict().items()}
    content["dropkey"]["preprocessing"]["image_size"] = 16
    torch.save(content, tmp_path / "a.ckpt")
    assert dropkey("export", "--ckpt_path=a.ckpt", "--output=mine").code == 0
    tuning = ("--config", QUICKSTART, "--model.model_name=local-dir:mine", "--model.pretrained=true", "--model.model_args=null")
    outcome = dropkey("fit", *tuning, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--name=a")
    assert outcome.code == 0, outcome.err
    assert "weights     from mine/model.safetensors (licence: not stated)\n" in outcome.out
    assert "tensors are taken, the classifier's too\n" in outcome.out
    for file in Path("mine").iterdir():
        file.unlink()
    Path("mine").rmdir()
    assert dropkey("predict", "--ckpt_path=runs/a", "--data.root", SEVEN).code == 0
    assert dropkey("test", "--ckpt_path=runs/a").code == 0
    assert dropkey("fit", "--resume=runs/a/version_0", "--trainer.max_epochs=2").code == 0
    assert dropkey("export", "--ckpt_path=runs/a", "--output=again").code == 0


def test_every_command_that_takes_a_model_takes_a_folder_or_says_so(dropkey: Dropkey, refused: Refused, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt")
    assert dropkey("export", "--ckpt_path=a.ckpt", "--output=mine").code == 0
    outcome = dropkey("inspect", "local-dir:mine")
    assert outcome.code == 0, outcome.err
    assert "26 × 26" in outcome.out  # 40 pixels in patches of 8, and the class token
    assert refused("models", "local-dir:mine").endswith("write dropkey inspect local-dir:mine")
    assert "there is no folder 'none'" in refused("benchmark", "--model=local-dir:none")
    assert "there is no folder 'none'" in refused("fit", "--model.model_name=local-dir:none")


@pytest.mark.slow
@pytest.mark.parametrize("which", checkpoints.NETWORKS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's exporters, of themselves
def test_every_form_of_every_kind_of_network(which: str, dropkey: Dropkey, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt", which)
    outcome = dropkey("export", "--ckpt_path=a.ckpt", "--output=out", "--format=timm,onnx,torch")
    assert outcome.code == 0, outcome.err
    files = {"README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors", "preprocessing.json"}
    assert {file.name for file in Path("out").iterdir()} == files
    assert json.loads(Path("out/preprocessing.json").read_text(encoding="utf-8"))["class_names"] == checkpoints.CLASSES
    assert ("import dropkey_cli.models first" in outcome.out) == (which in ("t2t_vit", "ceit"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no folder is given to write to: add --output DIR"),
        (["--output=x", "--format=tim"], "--format 'tim' is unknown: give one of timm, onnx, torch, .*; did you mean 'timm'"),
        (["--output=x", "--ckpt_path=nowhere"], "--ckpt_path 'nowhere' is neither a checkpoint"),
        (["--output=x"], "no checkpoint given: add --ckpt_path"),
        (["--output=a.ckpt"], "--output 'a.ckpt' is there already: give another folder, or remove it first"),
        (["--output=x", "--ckpt_path=a.ckpt", "--images=none"], ".*'none' does not exist"),
        (["--output=x", "--ckpt_path=a.ckpt", "--public"], "--public says who may see what is pushed"),
        (["--output=x", "--ckpt_path=a.ckpt", "--push-to-hub=me"], "--push_to_hub 'me' is no name of a model"),
        (["--output=x", "--ckpt_path=a.ckpt", "--push_to_hub=me/a"], "--push_to_hub me/a: the hub cannot be reached"),
        (["--outptu=x"], "unknown option --outptu; did you mean '--output'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str], message: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network() -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(availability, "get_session", no_network)
    checkpoints.save(tmp_path / "a.ckpt")
    assert re.match(message, refused("export", *words))
    assert {file.name for file in tmp_path.iterdir()} == {"a.ckpt"}


def test_a_missing_package_is_one_line(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    checkpoints.save(tmp_path / "a.ckpt")
    line = refused("export", "--ckpt_path=a.ckpt", "--output=x", "--format=timm,onnx")
    assert line.endswith("is not installed: pip install 'dropkey[onnx]'")


def test_push_is_private_unless_asked(dropkey: Dropkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dropkey_cli.commands import export

    pushed: list[tuple[Path, str, bool]] = []

    def push(folder: Path, name: str, *, public: bool) -> str:
        pushed.append((folder, name, public))
        return "https://hub/me/lions"

    monkeypatch.setattr(export, "check_push", lambda name: None)
    monkeypatch.setattr(export, "push", push)
    checkpoints.save(tmp_path / "a.ckpt")
    assert dropkey("export", "--ckpt_path=a.ckpt", "--output=x").code == 0
    assert pushed == []
    outcome = dropkey("export", "--ckpt_path=a.ckpt", "--output=y", "--push_to_hub=me/lions")
    assert "pushed to   https://hub/me/lions\n" in outcome.out
    assert dropkey("export", "--ckpt_path=a.ckpt", "--output=z", "--push_to_hub=me/lions", "--public").code == 0
    assert pushed == [(Path("y"), "me/lions", False), (Path("z"), "me/lions", True)]
    assert '"hf-hub:me/lions"' in Path("y/README.md").read_text(encoding="utf-8")
    assert "# me/lions" in Path("y/README.md").read_text(encoding="utf-8")
