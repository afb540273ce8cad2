import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from dropkey_cli.export.card import model_card
from dropkey_cli.export.trained import Trained, read_trained
from tests.export import checkpoints

WORDS = ["dropkey", "export", "--ckpt_path", "/home/me/runs/a", "--output=/home/me/lions", "--format", "timm"]


def trained_at(folder: Path, which: str = "vit", **changes: Any) -> Trained:  # noqa: ANN401
    checkpoints.save(folder / "a.ckpt", which, root="/home/me/photos", **changes)
    return read_trained(folder / "a.ckpt")


def front_matter(card: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return content


def test_what_the_hub_reads(tmp_path: Path) -> None:
    card = model_card(trained_at(tmp_path), ["timm", "onnx"], title="me/lions", words=WORDS)
    facts = front_matter(card)
    assert facts["library_name"] == "timm"
    assert facts["pipeline_tag"] == "image-classification"
    assert {"dropkey", "timm", "onnx"} <= set(facts["tags"])
    assert not facts.keys() & {"license", "base_model"}  # nobody has said
    parsed: Any = ModelCard(card).data  # as the hub's own library reads it
    (result,) = parsed.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("val/acc1", 0.75, "photos")


def test_what_people_read(tmp_path: Path) -> None:
    card = model_card(trained_at(tmp_path), ["timm"], title="lions", words=WORDS)
    for text in (
        "Löwe, 猫",
        "train 90, val 10",
        "| val/acc1 | 0.7500 |",
        "ratio 0.3",
        "arXiv:2208.02646",
        "CVPR",
        "40 × 40 pixels",
    ):
        assert text in card
    config = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])
    assert config["model"]["init_args"]["model_args"] == checkpoints.VIT


def test_nothing_of_the_machine(tmp_path: Path) -> None:
    card = model_card(trained_at(tmp_path), ["timm"], title="lions", words=WORDS)
    assert "/home" not in card
    assert "root: photos" in card
    assert "dropkey export --ckpt_path a --output=lions --format timm" in card


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        ("fastvit-license", {"license": "other", "license_name": "fastvit-license"}),
        (None, {}),
    ],
)
def test_the_licence_of_the_weights(licence: str | None, expected: dict[str, str], tmp_path: Path) -> None:
    overlay = {"hf_hub_id": "a/b@v1", **({"license": licence} if licence else {})}
    args = {**checkpoints.VIT, "pretrained_cfg_overlay": overlay}
    task = {"class_path": "a.B", "init_args": {"pretrained": True}}
    model = {"name": "vit_tiny_patch16_224", "args": args, "image_size": 40}
    trained = trained_at(tmp_path, model=model, config={"model": task, "data": {"class_path": "a.Photos"}})
    facts = front_matter(model_card(trained, ["timm"], title="x", words=WORDS))
    assert {name: value for name, value in facts.items() if name.startswith("license")} == expected
    assert facts["base_model"] == "a/b"


def test_networks_of_our_own_need_an_import(tmp_path: Path) -> None:
    assert "`import dropkey_cli.models` before" in model_card(trained_at(tmp_path, "ceit"), ["timm"], title="x", words=WORDS)
    assert "import dropkey_cli" not in model_card(trained_at(tmp_path, "vit"), ["timm"], title="x", words=WORDS)


def test_the_library_of_other_forms(tmp_path: Path) -> None:
    assert front_matter(model_card(trained_at(tmp_path), ["torch"], title="x", words=WORDS))["library_name"] == "pytorch"
