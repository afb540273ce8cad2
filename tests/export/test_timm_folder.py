import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dropkey_cli.export.timm_folder import write_timm
from dropkey_cli.export.trained import read_trained
from tests.export import checkpoints

NOTHING = torch.empty(0)


@pytest.mark.parametrize("which", checkpoints.NETWORKS)
def test_timm_makes_the_same_network_of_it(which: str, tmp_path: Path) -> None:
    network = checkpoints.save(tmp_path / "a.ckpt", which)
    run = write_timm(read_trained(tmp_path / "a.ckpt"), NOTHING, tmp_path / "out")
    size = checkpoints.NETWORKS[which][2]
    images = checkpoints.seeded_images(size)
    assert torch.equal(run(images), network(images))  # bit for bit: no mask, no other weight
    assert network(images).std(0).min() > 0.01  # which differ from image to image


def test_what_timm_reads_of_it(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt")
    write_timm(read_trained(tmp_path / "a.ckpt"), NOTHING, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    config: Any = model.pretrained_cfg
    assert config["label_names"] == checkpoints.CLASSES
    assert config["input_size"] == (3, 40, 40)
    assert (config["mean"], config["std"]) == ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    assert (config["interpolation"], config["crop_pct"], config["crop_mode"]) == ("bilinear", 0.8, "center")
    assert model.num_classes == 4


def test_the_licence_is_never_the_one_of_weights_that_were_not_used(tmp_path: Path) -> None:
    assert timm.get_pretrained_cfg("vit_tiny_patch16_224").license == "apache-2.0"  # type: ignore[union-attr]  # it has one
    checkpoints.save(tmp_path / "a.ckpt")  # from scratch
    write_timm(read_trained(tmp_path / "a.ckpt"), NOTHING, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]
    assert not config.keys() & {"license", "tag", "paper_ids", "origin_url", "description", "url", "hf_hub_id", "file"}


def test_the_licence_of_the_weights_it_was_trained_from(tmp_path: Path) -> None:
    args = {**checkpoints.VIT, "pretrained_cfg_overlay": {"hf_hub_id": "a/b", "license": "cc-by-nc-4.0"}}
    task = {"class_path": "dropkey_cli.tasks.classification.Classification", "init_args": {"pretrained": True}}
    model = {"name": "vit_tiny_patch16_224", "args": args, "image_size": 40}
    checkpoints.save(tmp_path / "a.ckpt", model=model, config={"model": task, "data": {"class_path": "a.B"}})
    write_timm(read_trained(tmp_path / "a.ckpt"), NOTHING, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    assert "a/b" not in json.dumps(config)


def test_everybody_who_may_read_the_one_file_may_read_the_other(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt")
    write_timm(read_trained(tmp_path / "a.ckpt"), NOTHING, tmp_path / "out")
    modes = {file.name: file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
