import json
from pathlib import Path

import pytest
import torch

from dropkey_cli.errors import InputError
from dropkey_cli.export.card import model_card
from dropkey_cli.export.trained import preprocessing_json, read_trained
from dropkey_cli.tasks.losses import normalized_sigmoid
from tests.export import checkpoints

METRICS = "epoch,step,train/loss,val/acc1,val/loss\n4,9,,0.5,1.5\n4,19,0.3,,\n4,19,,0.625,1.25\n5,29,,0.9,0.1\n"


def test_all_that_is_known_of_a_network(tmp_path: Path) -> None:
    path = tmp_path / "version_0/checkpoints/best.ckpt"
    network = checkpoints.save(path)
    trained = read_trained(path)
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(trained.network(images), network(images))
    assert not trained.network.training
    assert trained.class_names == checkpoints.CLASSES
    assert trained.preprocessing.std == (0.2, 0.25, 0.3)
    assert (trained.name, trained.epoch, trained.licence, trained.base) == ("vit_tiny_patch16_224", 5, None, None)
    assert trained.metrics == {"val/acc1": 0.75}  # that it was chosen by


def test_the_metrics_of_its_step_are_those_that_its_run_logged(tmp_path: Path) -> None:
    path = tmp_path / "version_0/checkpoints/best.ckpt"
    checkpoints.save(path)
    (tmp_path / "version_0/metrics.csv").write_text(METRICS)
    assert read_trained(path).metrics == {"val/acc1": 0.625, "val/loss": 1.25}


@pytest.mark.parametrize(
    ("args", "licence", "base"),
    [
        ({}, "apache-2.0", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        ({"pretrained_cfg_overlay": {"file": "own.pth"}}, None, None),
        ({"pretrained_cfg_overlay": {"hf_hub_id": "a/b", "license": "cc-by-nc-4.0"}}, "cc-by-nc-4.0", "a/b"),
        ({"pretrained_cfg_overlay": {"hf_hub_id": "a/b"}}, None, "a/b"),  # not the licence of timm's weights
    ],
)
def test_the_licence_is_that_of_the_weights_it_was_trained_from(
    args: dict[str, object], licence: str | None, base: str | None, tmp_path: Path
) -> None:
    task = {"class_path": "dropkey_cli.tasks.classification.Classification", "init_args": {"pretrained": True}}
    model = {"name": "vit_tiny_patch16_224", "args": {**checkpoints.VIT, **args}, "image_size": 40}
    checkpoints.save(tmp_path / "a.ckpt", model=model, config={"model": task, "data": {"class_path": "a.B"}})
    trained = read_trained(tmp_path / "a.ckpt")
    assert (trained.licence, trained.base, trained.pretrained) == (licence, base, True)


def test_preprocessing_that_cannot_be(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt", preprocessing={"size": 3})
    with pytest.raises(InputError, match=r"a\.ckpt' is damaged, its preprocessing cannot be .*'size'"):
        read_trained(tmp_path / "a.ckpt")


def test_preprocessing_as_json(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt")
    text = preprocessing_json(read_trained(tmp_path / "a.ckpt"))
    facts = json.loads(text)
    assert facts["class_names"] == checkpoints.CLASSES
    assert facts["input"].startswith("images: float32 (batch, 3, image_size, image_size), RGB, ")
    assert facts["output"] == "logits: float32 (batch, classes); softmax gives the probabilities"
    assert "猫" in text
    assert (facts["image_size"], facts["mean"], facts["crop_pct"]) == (40, [0.4, 0.5, 0.6], 0.8)


def test_preprocessing_of_one_channel_and_many_labels(tmp_path: Path) -> None:
    args = {**checkpoints.VIT, "in_chans": 1}
    task = {"class_path": "dropkey_cli.tasks.multi_label.MultiLabelClassification"}
    grey = {"image_size": 40, "mean": [0.4], "std": [0.2], "interpolation": "bilinear", "crop_pct": 0.8, "channels": 1}
    checkpoints.save(tmp_path / "a.ckpt", preprocessing=grey, config={"model": task, "data": {"class_path": "a.B"}})
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    saved["dropkey"]["model"]["args"] = args
    saved["state_dict"]["network.patch_embed.proj.weight"] = torch.zeros(32, 1, 8, 8)
    torch.save(saved, tmp_path / "a.ckpt")
    trained = read_trained(tmp_path / "a.ckpt")
    facts = json.loads(preprocessing_json(trained))
    assert facts["input"].startswith("images: float32 (batch, 1, image_size, image_size), grey, ")
    assert facts["output"] == "logits: float32 (batch, classes); sigmoid gives the probabilities"
    card = model_card(trained, ["timm", "onnx"], title="x", words=["dropkey", "export"])
    assert '.convert("L")' in card
    assert ".sigmoid()" in card
    assert "softmax" not in card
    assert "float32 (batch, 1, height, width)" in card


def test_a_network_learnt_with_bce_divides_its_sigmoids_by_their_sum(tmp_path: Path) -> None:
    task = {"class_path": "dropkey_cli.tasks.classification.Classification", "init_args": {"loss": "bce"}}
    checkpoints.save(tmp_path / "a.ckpt", config={"model": task, "data": {"class_path": "a.B"}})
    trained = read_trained(tmp_path / "a.ckpt")
    assert "; sigmoid / sum(sigmoid) gives" in preprocessing_json(trained)
    (line,) = [line for line in model_card(trained, ["timm"], title="x", words=[]).splitlines() if "scores.sum()" in line]
    logits = torch.tensor([-1.0, 2.0, 0.5])
    scores, best = logits.sigmoid(), 1
    value = line.partition("float(")[2].removesuffix("))")
    assert eval(value, {"scores": scores, "best": best}) == normalized_sigmoid(logits)[best]
