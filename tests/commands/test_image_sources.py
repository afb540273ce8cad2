"""Options of images and augmentation from the words to the predictions."""

import csv
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.commands.forks import RUN, log, run, signal_itself
from tests.commands.test_resume import RESUME, assert_same_run, forked

SMALL = (
    "--model.model_name=test_vit", "--model.pretrained=false", "--data.image_size=32", "--data.crop_pct=1",
    "--data.num_workers=0", "--name=quickstart", "--trainer.accelerator=cpu", "--trainer.devices=1",
    "--trainer.max_epochs=2", "--trainer.log_every_n_steps=2",
)  # fmt: skip
Dropkey = Callable[..., Any]
Refused = Callable[..., str]


def digits(root: Path, channels: int) -> dict[str, np.ndarray]:
    """Twelve scans each of 0 and 1 in class folders: grey as 16-bit PNG, else shifted against each other in .npy arrays."""
    found, scans = {}, load_digits()
    for label in (0, 1):
        (root / str(label)).mkdir(parents=True)
        for number, scan in enumerate(scans.images[scans.target == label][:12]):
            grey = np.kron(scan * 4095, np.ones((4, 4))).astype(np.uint16)  # (32, 32), 0 to 65,520
            pixels = np.stack([np.roll(grey, channel, axis=0) for channel in range(channels)], axis=-1)
            path = root / str(label) / f"{number}.{'png' if channels == 1 else 'npy'}"
            if channels == 1:
                Image.fromarray(grey).save(path)
            else:
                np.save(path, pixels)
            found[f"data/{label}/{path.name}"] = pixels
    return found


@pytest.mark.parametrize("channels", [1, 5])
def test_a_model_of_other_channels_trains_and_predicts_what_its_weights_say_by_hand(channels: int, dropkey: Dropkey) -> None:
    pixels = digits(Path("data"), channels)
    outcome = dropkey("fit", *SMALL, "--data.root=data", f"--data.channels={channels}")
    assert outcome.code == 0, outcome.err
    assert (f"32 × 32 pixels, {channels} channel(s), " in outcome.out, "no report" in outcome.err) == (True, False)
    exported = dropkey("export", "--ckpt_path=last", "--output=exported")
    assert "on 8 images of data, " in exported.out, exported.err
    assert f"dropkey fit --model.model_name local-dir:exported --data.channels {channels} --data.root" in exported.out
    assert dropkey("predict", "--ckpt_path=last", "--data.root=data", "--trainer.accelerator=cpu").code == 0
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    description = checkpoint["dropkey"]
    assert description["preprocessing"]["channels"] == description["model"]["args"]["in_chans"] == channels
    assert description["preprocessing"]["mean"] == [0.5] * channels  # the model's three are 0.5 each
    network = timm.create_model("test_vit", num_classes=2, in_chans=channels, img_size=32).eval().requires_grad_(False)
    network.load_state_dict({name.removeprefix("network."): value for name, value in checkpoint["state_dict"].items()})
    with open("predictions.csv", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows.keys() == pixels.keys()
    for path, array in pixels.items():
        images = torch.from_numpy(np.rint(array / 257)).permute(2, 0, 1)[None].float() / 255
        probabilities = network((images - 0.5) / 0.5).softmax(-1)[0]
        assert float(rows[path]["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert rows[path]["prediction"] == str(int(probabilities.argmax()))
    assert dropkey("check", "data", f"--channels={channels}", "--num_workers=0").code == 0
    other = dropkey("test", "--ckpt_path=last", "--data.test_fraction=0.5", "--data.channels=3")
    assert (other.code, other.err.count("\n")) == (2, 1)


def test_check_and_fit_refuse_the_same_arrays(dropkey: Dropkey, refused: Refused) -> None:
    digits(Path("data"), 5)
    np.save("data/0/odd.npy", np.zeros((8, 8, 4), np.uint8))
    message = refused("fit", *SMALL, "--data.root=data", "--data.channels=5")
    assert message.startswith("of all 25 images, 1 cannot be read: 'data/0/odd.npy' (it is an array (8, 8, 4) of uint8, ")
    assert "; dropkey check data --channels 5 lists every one" in message
    outcome = dropkey("check", "data", "--channels", "5", "--num_workers=0")
    assert outcome.code == 1
    assert "cannot be read (1):\n  data/0/odd.npy: it is an array (8, 8, 4)" in outcome.out
    assert refused("check", "data", "--channels", "0") == "channels is 0; expected 1 or more; give e.g. --channels 3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--data.auto_augment=rand-m9-foo"],
            "auto_augment is 'rand-m9-foo', but 'foo' in it means nothing; expected rand",
        ),
        (["--data.auto_augment=rand-m9", "--data.channels=1"], "auto_augment is 'rand-m9', but the images have 1 channel(s)"),
        (["--data.color_jitter=x"], "data.color_jitter 'x' is not valid: expected a number or a list"),
        (["--data.hflip=null"], "data.hflip is null; expected a number; give --data.hflip, or leave it out"),
        (["--data.hflipp=0"], "unknown option --data.hflipp; did you mean '--data.hflip' or"),
        (["--data.max_train_images=1"], "max_train_images is 1; expected at least 2, one image of each class; give e.g."),
        (["--data.repeats=0"], "repeats is 0; expected 1 or more; give e.g. --data.repeats 1"),
        (["--data.train_crop_mode=rcc"], "data.train_crop_mode 'rcc' is not valid: expected rrc, rkrc, rkrr, pad"),
        (["--data.channels=2"], "no images in the class folders of 'data'; expected ROOT/train/CLASS/*.npy"),
        (["--model.model_args={in_chans: 1}"], "model_args has in_chans 1, but the images have 3 channels; expected the same;"),
    ],
)
def test_what_cannot_work_is_one_line(words: list[str], message: str, refused: Refused, dropkey: Dropkey) -> None:
    digits(Path("data"), 1)
    assert refused("fit", *SMALL, "--data.root=data", *words).startswith(message)


@pytest.mark.parametrize("repeats", [pytest.param(2, marks=forked)])
def test_a_run_with_repeats_auto_augment_and_fewer_images_goes_on_bit_for_bit(repeats: int, tmp_path: Path) -> None:
    digits(tmp_path / "data", 1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    augmented = ("--data.auto_augment=rand-m9-mstd0.5-inc1", "--data.train_crop_mode=pad", f"--data.repeats={repeats}")
    few = ("--data.max_train_images=17", "--data.batch_size=4", "--checkpoint_minutes=0.0001")
    fit = ("fit", *SMALL, f"--data.root={tmp_path / 'data'}", *augmented, *few)
    for folder in (whole, parts):
        folder.mkdir()
    assert run(fit, whole) == 0, log(whole)
    assert " 17 of 20 training images are used (max_train_images 17)." in log(whole)
    assert "10 optimizer steps" in log(whole)
    assert run(fit, parts, prepare=signal_itself(signal.SIGTERM, batch=7)) == 143, log(parts)
    assert run(RESUME, parts) == 0, log(parts)
    assert_same_run(parts, whole)
