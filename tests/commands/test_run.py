"""The Trainer commands from the words to the files; `trained` is made once, see conftest."""

import csv
import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import get_worker_info

from dropkey_cli.commands.run import run
from dropkey_cli.data.dataset import ImageDataset
from dropkey_cli.errors import RunError
from dropkey_cli.models import availability, factory
from dropkey_cli.tasks.classification import Classification

ROOT = Path(__file__).parents[2]
QUICKSTART = ("fit", "--config", str(ROOT / "configs" / "quickstart.yaml"))
ONE_STEP = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--report=false")
SMALL = ("--model.model_name=vit_tiny_patch16_224", "--model.pretrained=false",
         "--model.model_args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}", "--data.image_size=32",
         "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1")  # fmt: skip
VERSION = Path("runs/quickstart/version_0")

Dropkey = Callable[..., Any]
Refused = Callable[..., str]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def printed_metrics(out: str) -> dict[str, float]:
    """The numbers of Lightning's table."""
    cells = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if line.count("│") == 3]
    return {row[1]: float(row[2]) for row in cells}


def config_of(run: Path) -> Any:  # noqa: ANN401 - YAML
    return yaml.safe_load((run / "config.yaml").read_text())


def options(dropkey: Dropkey, *words: str) -> Any:  # noqa: ANN401 - YAML
    """The configuration that a fit would use."""
    outcome = dropkey("fit", *words, "--print_config")
    assert (outcome.code, outcome.err) == (0, "")
    return yaml.safe_load(outcome.out)


# A run's folder


def test_run_folder(trained: Path) -> None:
    run = trained / VERSION
    files = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    ratios = {"drop_ratio.csv", "drop_ratio.png"}
    names = (
        "report.html",
        "predictions.csv",
        "per_class.csv",
        "confusion.csv",
        "metrics.json",
        "confusion.png",
        "calibration.png",
    )
    report = {f"report/{name}" for name in names}
    assert files == {
        "config.yaml",
        "metrics.csv",
        "run.log",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        *ratios,
        *report,
    }
    columns = read_csv(run / "metrics.csv")[0].keys()
    layers = [f"blocks.{block}.attn" for block in range(6)]
    expected = {"epoch", "step", "train/loss", "train/acc1", "train/lr", "val/loss", "val/acc1", "val/acc5", "val/balanced_acc"}
    expected |= {f"drop_ratio/{name}" for name in [*layers, "mean"]} | {f"drop_ratio_configured/{name}" for name in layers}
    assert columns == expected


def test_run_log_has_the_plan_a_line_per_epoch_and_the_end(trained: Path) -> None:
    written = (trained / VERSION / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in written)
    found = [line[21:] for line in written]
    assert found[0].startswith("dropkey fit --config ")
    starts = [
        "data ",
        "weights ",
        "model ",
        "DropKey ",
        "optimizer ",
        "training ",
        "device ",
        "run folder ",
        "epoch 1/2  step 4/8 ",
    ]
    starts += ["epoch 2/2  step 8/8 ", "best val/balanced_acc 0.", "next: dropkey predict --ckpt_path ", "report: runs/"]
    positions = [next(number for number, line in enumerate(found) if line.startswith(start)) for start in starts]
    assert positions == sorted(positions)
    assert len(found) <= 17
    assert not any("\x1b" in line for line in found)


def test_a_second_run_gets_its_own_folder_and_the_same_numbers(trained: Path) -> None:
    # That the first is untouched is checked where they are made
    assert sorted(folder.name for folder in (trained / "runs" / "quickstart").iterdir()) == ["version_0", "version_1"]
    first, second = (trained / "runs" / "quickstart" / f"version_{number}" for number in (0, 1))
    assert read_csv(first / "metrics.csv") == read_csv(second / "metrics.csv")
    assert config_of(first) == config_of(second)
    weights = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_saved_config_repeats_the_run(trained: Path, dropkey: Dropkey) -> None:
    assert dropkey("fit", "--config", str(trained / VERSION / "config.yaml")).code == 0
    assert read_csv(VERSION / "metrics.csv") == read_csv(trained / VERSION / "metrics.csv")
    assert config_of(VERSION) == config_of(trained / VERSION)


def test_best_checkpoint_has_the_highest_balanced_accuracy(trained: Path) -> None:
    rows = [row for row in read_csv(trained / VERSION / "metrics.csv") if row["val/balanced_acc"]]
    assert len(rows) == 2
    best = max(rows, key=lambda row: float(row["val/balanced_acc"]))
    saved = torch.load(trained / VERSION / "checkpoints/best.ckpt", weights_only=True)
    assert saved["global_step"] == int(best["step"]) + 1
    last = torch.load(trained / VERSION / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 8


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_checkpoint_describes_itself_with_plain_data(trained: Path) -> None:
    description = torch.load(trained / VERSION / "checkpoints/best.ckpt", weights_only=True)["dropkey"]
    assert is_plain(description)
    assert description["class_names"] == list("0123456789")
    assert description["model"]["name"] == "vit_tiny_patch16_224"
    assert description["model"]["image_size"] == 16
    assert description["preprocessing"]["image_size"] == 16
    assert description["dropkey"]["ratio"] == 0.3
    assert description["versions"].keys() == {"dropkey", "timm", "torch", "lightning"}
    assert description["config"] == {part: config_of(trained / VERSION)[part] for part in ("model", "data")}


def test_the_next_commands_are_printed_and_nobody_advertises(dropkey: Dropkey) -> None:
    out, err = dropkey(*QUICKSTART, *ONE_STEP, "--report=true")[1:]
    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["next:", "report:"]
    assert not re.search(r"litmodels|lightning\.ai|\bTip\b|https?://", out + err)
    assert f"{'run folder':<12}{VERSION}" in out
    assert f"next: dropkey predict --ckpt_path {VERSION}/checkpoints/best.ckpt --data.root IMAGE_OR_FOLDER" in out
    assert dropkey(*QUICKSTART, *ONE_STEP, "--name=mine/deeper").code == 0
    assert Path("runs/mine/deeper/version_0/checkpoints/last.ckpt").is_file()


def test_the_models_name_is_the_runs_default_name(dropkey: Dropkey) -> None:
    assert dropkey("fit", "--data=dropkey_cli.data.digits.Digits", *SMALL[:4], *ONE_STEP, "--trainer.accelerator=cpu").code == 0
    assert [folder.name for folder in Path("runs").iterdir()] == ["vit_tiny_patch16_224"]


@pytest.mark.parametrize(
    "words", [["--trainer.accelerator=gpuu"], ["--model.dropkey.schedule=[0.1]"], ["--trainer.max_steps=0"]]
)
def test_a_run_that_never_began_leaves_no_folder(words: list[str], refused: Refused) -> None:
    refused(*QUICKSTART, *words)  # looks


def test_fast_dev_run_writes_nothing(dropkey: Dropkey) -> None:
    outcome = dropkey(*QUICKSTART, "--trainer.fast_dev_run=true")
    assert outcome.code == 0
    assert list(Path().iterdir()) == []


def test_training_without_dropkey(dropkey: Dropkey) -> None:
    assert dropkey(*QUICKSTART, *ONE_STEP, "--report=true", "--model.dropkey=null").code == 0
    assert not [name for name in read_csv(VERSION / "metrics.csv")[0] if name.startswith("drop_ratio")]
    assert torch.load(VERSION / "checkpoints/last.ckpt", weights_only=True)["dropkey"]["dropkey"] is None
    assert dropkey("test", "--ckpt_path=last").code == 0


def test_dropkey_changes_what_is_learned(dropkey: Dropkey) -> None:
    for ratio in ("0.3", "0.6"):
        assert dropkey(*QUICKSTART, *ONE_STEP, "--trainer.log_every_n_steps=1", f"--model.dropkey.ratio={ratio}").code == 0
    first, second = (read_csv(VERSION.with_name(f"version_{number}") / "metrics.csv") for number in (0, 1))
    configured = [{row["drop_ratio_configured/blocks.0.attn"] for row in rows} - {""} for rows in (first, second)]
    assert configured == [{"0.3"}, {"0.6"}]
    assert [row["train/loss"] for row in first] != [row["train/loss"] for row in second]


def test_training_resumes_from_a_checkpoint_in_a_new_folder(trained: Path, dropkey: Dropkey) -> None:
    outcome = dropkey(*QUICKSTART, *ONE_STEP, "--ckpt_path", str(trained / VERSION), "--trainer.max_epochs=3",
                      "--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=1")  # fmt: skip
    assert outcome.code == 0
    assert [row["step"] for row in read_csv(VERSION / "metrics.csv") if row["drop_ratio/mean"]] == ["8", "9", "10", "11"]


def test_without_validation_the_last_checkpoint_is_kept(dropkey: Dropkey) -> None:
    outcome = dropkey(*QUICKSTART, *ONE_STEP, "--trainer.check_val_every_n_epoch=5")
    assert (outcome.code, outcome.err) == (0, "")
    assert (
        "no val/balanced_acc up to step 1, so there is no best.ckpt: let validation come earlier (--trainer.val" in outcome.out
    )
    assert (VERSION / "checkpoints/last.ckpt").is_file()


def test_a_run_that_never_validates_looks_for_no_best_checkpoint(dropkey: Dropkey) -> None:
    outcome = dropkey(*QUICKSTART, *ONE_STEP, "--report=true", "--trainer.limit_val_batches=0")
    assert (outcome.code, outcome.err) == (0, "")
    assert [file.name for file in (VERSION / "checkpoints").iterdir()] == ["last.ckpt"]
    assert "best val/" not in outcome.out


def test_without_validation_the_report_is_that_of_the_averaged_weights(
    dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(
        "dropkey_cli.callbacks.report._written",
        lambda report, trainer, module: reported.update(module.state_dict()) or report.folder,
    )
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=0", "--ema=0.9")
    assert dropkey(*QUICKSTART, *short).code == 0
    checkpoint = torch.load(VERSION / "checkpoints/last.ckpt", weights_only=True)
    assert all(torch.equal(reported[name], value) for name, value in checkpoint["state_dict"].items())
    assert not torch.equal(reported["network.head.weight"], checkpoint["current_model_state"]["network.head.weight"])


# Which option wins


def test_options_beat_configs_beat_defaults(dropkey: Dropkey) -> None:
    dropkey()  # goes to the empty folder
    Path("a.yaml").write_text("trainer: {max_epochs: 7}\nmodel: {lr: 0.5, dropkey: {ratio: 0.4}}")
    Path("b.yaml").write_text("trainer: {max_epochs: 8}")
    assert options(dropkey)["trainer"]["max_epochs"] == 20
    assert options(dropkey, "--config=a.yaml")["trainer"]["max_epochs"] == 7
    assert options(dropkey, "--config=a.yaml", "--config=b.yaml")["trainer"]["max_epochs"] == 8
    for words in (["--config=a.yaml", "--trainer.max_epochs=9"], ["--trainer.max_epochs=9", "-c", "a.yaml"]):
        config = options(dropkey, *words)
        assert config["trainer"]["max_epochs"] == 9
        assert config["model"]["init_args"]["lr"] == 0.5
        assert config["model"]["init_args"]["dropkey"]["ratio"] == 0.4
        assert config["model"]["init_args"]["dropkey"]["schedule"] == "decreasing"


def test_options_beat_configs_beat_the_checkpoint_beats_defaults(trained: Path, dropkey: Dropkey) -> None:
    dropkey()
    best = ("--ckpt_path", str(trained / VERSION))
    Path("a.yaml").write_text("model: {lr: 0.25}\ndata: {init_args: {degrees: 3.0}}")

    def lr_degrees(*words: str) -> tuple[float, float]:
        config = options(dropkey, *words)
        return config["model"]["init_args"]["lr"], config["data"]["init_args"]["degrees"]

    assert options(dropkey, *best)["data"]["class_path"] == "dropkey_cli.data.digits.Digits"  # the default is ImageFolder
    assert lr_degrees(*best) == (0.002, 5.0)  # the defaults are null and 10
    assert lr_degrees(*best, "--config=a.yaml") == (0.25, 3.0)
    assert lr_degrees("--config=a.yaml", *best) == (0.25, 3.0)
    assert lr_degrees(*best, "--config=a.yaml", "--model.lr=0.75") == (0.75, 3.0)
    assert lr_degrees("--model.lr=0.75", "--data.degrees=1", *best, "--config=a.yaml") == (0.75, 1.0)


def test_a_config_may_name_the_checkpoint(trained: Path, dropkey: Dropkey) -> None:
    dropkey()
    Path("c.yaml").write_text(f"ckpt_path: {trained / VERSION}\ntrainer: {{limit_test_batches: 1}}")
    assert dropkey("test", "--config=c.yaml").code == 0


def test_what_is_given_beats_the_checkpoint_in_test_too(trained: Path, dropkey: Dropkey, refused: Refused) -> None:
    best = ("--ckpt_path", str(trained / VERSION), "--trainer.limit_test_batches=1")
    assert dropkey("test", *best, "--data.batch_size=7").code == 0
    line = refused("test", *best, "--model.model_args={depth: 2}")
    assert "leave those options out to take the checkpoint's" in line


# Evaluation


def test_every_name_of_a_checkpoint_gives_the_same_numbers(
    trained: Path, dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dropkey_cli.commands.run_parts.default_precision", lambda: "32-true")
    results = []
    dropkey()
    monkeypatch.chdir(trained)
    version = VERSION.with_name("version_1")  # the newest
    for given in (version / "checkpoints/best.ckpt", version, version.parent, "best"):
        outcome = dropkey("validate", "--ckpt_path", str(given))
        assert (outcome.code, outcome.err) == (0, "")
        results.append(printed_metrics(outcome.out))
    assert results[0].keys() == {"val/loss", "val/acc1", "val/acc5", "val/balanced_acc"}
    assert results.count(results[0]) == 4
    rows = [row for row in read_csv(version / "metrics.csv") if row["val/balanced_acc"]]
    best = max(rows, key=lambda row: float(row["val/balanced_acc"]))
    assert {name: pytest.approx(float(best[name]), abs=1e-6) for name in results[0]} == results[0]
    last = printed_metrics(dropkey("test", "--ckpt_path", "last").out)
    assert last.keys() == {"test/loss", "test/acc1", "test/acc5", "test/balanced_acc"}


def test_a_runs_config_is_valid_for_the_other_commands(
    trained: Path, dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropkey()
    monkeypatch.chdir(trained)
    outcome = dropkey("validate", "--config", str(VERSION / "config.yaml"), "--ckpt_path", str(VERSION))
    assert (outcome.code, outcome.err) == (0, "")
    assert printed_metrics(outcome.out) == printed_metrics(dropkey("validate", "--ckpt_path", str(VERSION)).out)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_must_be_given(command: str, trained: Path, dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = dropkey(command)
    assert outcome.code == 2
    assert outcome.err == (
        "dropkey: error: no checkpoint given: add --ckpt_path FILE_OR_RUN_FOLDER; there are none under runs/ here "
        "(dropkey fit makes them)\n"
    )
    monkeypatch.chdir(trained)
    assert f"newest first: {VERSION.with_name('version_1')}/checkpoints/" in dropkey(command).err


# Prediction


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a coloured, a grey and a broken image, the first in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    Image.new("RGB", (20, 10), (200, 30, 5)).save(folder / "a" / "good.png")
    Image.new("L", (7, 9), 128).save(folder / "grey.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    return folder


def test_predictions_of_a_folder(trained: Path, photos: Path, dropkey: Dropkey) -> None:
    outcome = dropkey("predict", "--ckpt_path", str(trained / VERSION), "--data.root", str(photos), "--top_k=10")
    assert (outcome.code, outcome.err) == (0, "")
    assert "3 rows, 1 of them unreadable (see the error column) in predictions.csv" in outcome.out
    rows = read_csv(Path("predictions.csv"))
    assert list(rows[0])[:6] == ["path", "prediction", "probability", "error", "top2_class", "top2_probability"]
    assert [row["path"] for row in rows] == [str(photos / name) for name in ("a/good.png", "broken.png", "grey.jpg")]
    assert rows[1]["error"].startswith("cannot identify image file")
    assert {value for name, value in rows[1].items() if name not in ("path", "error")} == {""}
    for row in (rows[0], rows[2]):
        assert row["error"] == ""
        ranked = [(row["prediction"], row["probability"])] + [
            (row[f"top{k}_class"], row[f"top{k}_probability"]) for k in range(2, 11)
        ]
        assert sorted(name for name, _ in ranked) == list("0123456789")
        probabilities = [float(value) for _, value in ranked]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)


def test_prediction_of_one_image_keeps_the_earlier_file(trained: Path, photos: Path, dropkey: Dropkey) -> None:
    words = ("predict", "--ckpt_path", str(trained / VERSION), "--data.root", str(photos / "grey.jpg"), "--output=out/p.csv")
    assert dropkey(*words).code == 0
    first = Path("out/p.csv").read_bytes()
    assert len(read_csv(Path("out/p.csv"))) == 1
    outcome = dropkey(*words)
    assert "the earlier out/p.csv is now out/p.1.csv" in outcome.out
    assert "1 row in out/p.csv" in outcome.out
    assert sorted(file.name for file in Path("out").iterdir()) == ["p.1.csv", "p.csv"]
    assert Path("out/p.csv").read_bytes() == Path("out/p.1.csv").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data.root is not given"),
        (["--data.root=nowhere"], "--data.root 'nowhere' does not exist"),
        (["--data.root=photos", "--top_k=0"], "--top_k 0: give a number"),
        (["--data.root=photos", "--output=photos"], "--output 'photos' is a folder"),
        (["--data.root=photos", f"--output={'x' * 300}.csv"], "cannot write --output 'xxx"),
        (["--data.root=photos", "--output=p.xlsx"], "--output 'p.xlsx': give a file that ends in .csv"),
        (["--data.root=photos", "--threshold=7"], "--threshold 7.0: give a probability"),
        (["--data.root=photos", "--mc_samples=-1"], 'Parser key "mc_samples": Not of type'),
        (["--data.root=photos", "--mc-samples=2", "--model.dropkey=null"], "--mc_samples 2: the network was trained without"),
        (["--data.root=photos/*.tif"], "--data.root 'photos/*.tif' matches nothing"),
        (["--data.root=photos", "--output=photos/grey.jpg/p.csv"], "cannot write --output 'photos/grey.jpg/p.csv'"),
        (["--data.root=photos", "--top=3"], "unknown option --top; did you mean '--top_k'"),
    ],
)
def test_wrong_predict_options(words: list[str], message: str, trained: Path, photos: Path, refused: Refused) -> None:
    assert refused("predict", "--ckpt_path", str(trained / VERSION), *words).startswith(message)
    assert not list(Path().rglob("*.csv*"))


@pytest.fixture
def predicted(trained: Path, photos: Path, dropkey: Dropkey) -> Callable[..., list[dict[str, Any]]]:
    """Classifies the photos with further options; gives the rows."""

    def predict(*words: str) -> list[dict[str, Any]]:
        root = () if any(word.startswith("--data.root") for word in words) else ("--data.root", str(photos))
        outcome = dropkey("predict", "--ckpt_path", str(trained / VERSION), *root, "--output=p.jsonl", *words)
        assert (outcome.code, outcome.err) == (0, "")
        return [json.loads(line) for line in Path("p.jsonl").read_text(encoding="utf-8").splitlines()]

    return predict


def test_features_and_all_probabilities_beside_the_same_prediction(predicted: Callable[..., list[dict[str, Any]]]) -> None:
    plain, full = predicted(), predicted("--features", "--all-probabilities")
    assert [{name: row[name] for name in plain[0]} for row in full] == plain  # bitwise
    wide = [[f"probability_{digit}" for digit in range(10)], [f"feature_{number}" for number in range(64)]]
    assert list(full[0]) == [*plain[0], *wide[0], *wide[1]]
    assert full[1]["feature_63"] is None
    assert full[1]["probability_0"] is None
    for row in (full[0], full[2]):
        assert sum(row[name] for name in wide[0]) == pytest.approx(1, abs=1e-5)
        assert row[f"probability_{row['prediction']}"] == row["probability"]
        assert max(abs(row[name]) for name in wide[1]) > 0.1


def test_monte_carlo_repeats_itself_whatever_the_batches(predicted: Callable[..., list[dict[str, Any]]]) -> None:
    first, again, single = (predicted("--mc-samples=3", f"--data.batch_size={size}") for size in (2, 2, 1))
    assert first == again
    assert [row["prediction"] for row in single] == [row["prediction"] for row in first]
    for row, same in ((first[0], single[0]), (first[2], single[2])):
        assert row["std"] == pytest.approx(same["std"], rel=1e-3)
        assert row["std"] > 0
    assert first[1]["std"] is None
    other = predicted("--mc-samples=3", "--seed_everything=1")
    assert other[0]["probability"] != first[0]["probability"]
    assert [row["std"] for row in predicted("--mc-samples=1")] == [None] * 3


def test_a_list_may_name_what_is_not_there(predicted: Callable[..., list[dict[str, Any]]]) -> None:
    Path("list.csv").write_text("path,note\nphotos/grey.jpg,1\nphotos/gone.png,2\nphotos/grey.jpg,3\n")
    rows = predicted("--data.root=list.csv")
    assert [row["path"] for row in rows] == ["photos/grey.jpg", "photos/gone.png", "photos/grey.jpg"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert rows[0] == rows[2]
    assert [row["path"] for row in predicted("--data.root=photos/*.jpg")] == ["photos/grey.jpg"]


# Image folders


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    """Three uneven classes of pictures that a glance tells apart, but for some noise."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "flags"
    for split, counts in (("train", (12, 6, 3)), ("val", (9, 5, 2)), ("test", (2, 2, 2))):
        for channel, (name, count) in enumerate(zip(("ant", "bee", "cat"), counts, strict=True)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 200, (40, 36, 3), generator=generator)
                pixels[..., channel] += 55
                Image.fromarray(pixels.byte().numpy()).save(folder / split / name / f"{number}.png")
    return folder


def test_metrics_of_an_image_folder_equal_scikit_learns_on_the_predictions(flags: Path, dropkey: Dropkey) -> None:
    root = ("--data.root", str(flags))
    assert dropkey("fit", *root, *SMALL, "--trainer.max_epochs=2", "--data.batch_size=5", "--model.lr=1e-3").code == 0
    validated = printed_metrics(dropkey("validate", "--ckpt_path=last", "--data.batch_size=4").out)
    assert dropkey("predict", "--ckpt_path=last", "--data.root", str(flags / "val"), "--data.batch_size=3").code == 0
    rows = read_csv(Path("predictions.csv"))
    assert len(rows) == 16
    true, predicted = [Path(row["path"]).parent.name for row in rows], [row["prediction"] for row in rows]
    assert validated.keys() == {"val/loss", "val/acc1", "val/balanced_acc"}  # top-5 of three classes says nothing
    assert validated["val/acc1"] == pytest.approx(accuracy_score(true, predicted), abs=1e-6)
    assert validated["val/balanced_acc"] == pytest.approx(balanced_accuracy_score(true, predicted), abs=1e-6)
    tested = printed_metrics(dropkey("test", "--ckpt_path=last").out)
    assert tested["test/acc1"] == pytest.approx(tested["test/balanced_acc"])  # even classes
    shutil.rmtree(flags / "train")  # evaluation needs no training images
    shutil.rmtree(flags / "val")
    assert printed_metrics(dropkey("test", "--ckpt_path=last").out) == tested


def test_unreadable_images_stop_or_are_skipped_and_counted(flags: Path, dropkey: Dropkey) -> None:
    words = ("--data.root", str(flags), *SMALL, "--trainer.max_epochs=1", "--data.batch_size=5", "--model.lr=1e-3")
    broken = [flags / "train/ant/3.png", flags / "val/ant/0.png", flags / "val/bee/1.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:300])
    outcome = dropkey("fit", *words)
    assert outcome.code == 2
    assert str(flags / "train") in outcome.err or str(flags / "val") in outcome.err
    outcome = dropkey("fit", *words, "--data.on_error=skip")
    assert outcome.code == 0
    assert sorted(line.split("'")[1] for line in outcome.err.splitlines() if line.startswith("skipped")) == sorted(
        map(str, broken)
    )
    assert f"3 unreadable images skipped: {broken[0]}, {broken[1]}, {broken[2]} (dropkey check lists all)" in outcome.out
    with_them = printed_metrics(dropkey("validate", "--ckpt_path=last").out)
    for path in broken:
        path.unlink()
    assert printed_metrics(dropkey("validate", "--ckpt_path=last").out) == pytest.approx(with_them, rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data.root is not given; expected ROOT/train/CLASS"),
        (["--data.root="], "--data.root is not given; expected ROOT/train/CLASS"),
        (["--data.root=nowhere"], "--data.root 'nowhere' does not exist"),
        ([f"--data.root={'x' * 9000}"], "--data.root 'xxx"),
        (["--data.root=photos"], "found 1 class(es) ('a') in 'photos'; expected"),
    ],
)
def test_wrong_image_folders(words: list[str], message: str, photos: Path, refused: Refused) -> None:
    assert refused("fit", *SMALL, *words).startswith(message)


# What cannot work


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.model_name=vit_tny_patch16_224"], "'vit_tny_patch16_224' is not a model that timm"),
        (["--model.model_name=vit_tiny_patch16_224.augreg_in21kk"], "vit_tiny_patch16_224 has no weights 'augreg_in21kk'"),
        (["--model.model_name=resnet18", "--model.model_args=null"], "ResNet has no attention layer that DropKey can act on"),
        (["--model.model_args={dept: 3}"], "timm cannot build vit_tiny_patch16_224 with num_classes=10, dept=3"),
        (["--model.dropkey.ratio=1.5"], "ratio 1.5 is not a drop ratio"),
        (["--model.dropkey.schedule=[0.1,0.2]"], "schedule lists 2 ratios, the model has 6 layers"),
        (["--model.lr=-1"], "lr is -1.0; expected 0 or more; give --model.lr"),
        (["--data.batch_size=0"], "batch_size is 0"),
        (["--trainer.accelerator=gpuu"], "the trainer options do not work together: accelerator 'gpuu' is unknown"),
        (["--trainer.strategy=ddpp"], "the trainer options do not work together: strategy 'ddpp' is unknown"),
        (["--trainer.devices=0"], "the trainer options do not work together: `Trainer(devices='0')`"),
        (["--trainer.accumulate_grad_batches=0"], "the trainer options do not work together: accumulate_grad_batches is 0"),
        (["--trainer.max_steps=0"], "the trainer options give 0 optimizer steps"),
        (["--trainer.max_epochs=-1"], "the trainer options give inf optimizer steps"),
        (["--seed_everything=-3"], "--seed_everything: -3 is not in bounds"),
        (["--name=../x"], "--name '../x' is no folder name"),
        (["--ckpt_path=nowhere"], "--ckpt_path 'nowhere' is neither a checkpoint nor a run folder"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], message: str, refused: Refused) -> None:
    assert refused(*QUICKSTART, *words).startswith(message)


def test_pretrained_weights_that_cannot_be_had_are_said_at_once(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(availability, "get_session", no_network)
    monkeypatch.setattr(availability, "try_to_load_from_cache", lambda *_, **__: None)
    line = refused("fit", "--model.pretrained=true", "--trainer.accelerator=cpu", *QUICKSTART[1:])
    assert line.startswith("the pretrained weights of vit_tiny_patch16_224 (timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k)")
    assert "train from scratch with --model.pretrained false" in line


def test_weights_that_a_checkpoint_replaces_are_not_looked_for(
    trained: Path, dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = torch.load(trained / VERSION / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["dropkey"]["config"]["model"]["init_args"] |= {"pretrained": True, "layer_decay": 1.0}
    torch.save(checkpoint, "tuned.ckpt")
    monkeypatch.setattr(factory, "_check_weights", lambda *_: pytest.fail("looked for"))
    image = str(ROOT / "tests/images/seven.png")
    assert dropkey("predict", "--ckpt_path=tuned.ckpt", "--data.root", image).code == 0
    outcome = dropkey("fit", "--ckpt_path=tuned.ckpt", *ONE_STEP, "--trainer.max_epochs=3")
    assert outcome.code == 0, outcome.err
    assert "weights     tuned.ckpt\n" in outcome.out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_is_one_sentence(number: int) -> None:
    def full(*_: object) -> None:
        try:
            raise OSError(number, os.strerror(number), "runs/a/metrics.csv")
        except OSError as error:
            raise ValueError("wrapped") from error

    with pytest.raises(RunError, match=f"writing failed .*{os.strerror(number)}: 'runs/a/metrics.csv'.*free some space"):
        run("fit", [], cli=full)

    def other(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "no such file")

    with pytest.raises(FileNotFoundError):
        run("fit", [], cli=other)


# A loss that is not finite

DIVERGES = ("--model.lr=1e30", "--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=2")


@pytest.mark.parametrize("words", [[], ["--on_nonfinite_loss", "stop"]])
def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(words: list[str], dropkey: Dropkey) -> None:
    outcome = dropkey(*QUICKSTART, *DIVERGES, *words)
    assert outcome.code == 1
    assert re.match(
        r"dropkey: error: the loss is nan at step 2 \(epoch 1, batch 2: digits/\d+, .*\); "
        r"the first value that is not finite comes out of blocks\.0\.norm1; no checkpoint was written before it; ",
        outcome.err,
    )
    assert outcome.err.count("\n") == 1
    assert not list(Path("runs").rglob("*.ckpt"))


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(dropkey: Dropkey) -> None:
    outcome = dropkey(*QUICKSTART, *DIVERGES, "--model.lr=1e16", "--model.warmup_share=0.5", "--checkpoint_minutes=0.0001")
    assert outcome.code == 1
    last = VERSION / "checkpoints/last.ckpt"
    assert f"the last good checkpoint is {last}; continue with dropkey fit --resume {VERSION} and a lower" in outcome.err
    assert outcome.err.count("\n") == 1
    saved = torch.load(last, weights_only=True)
    assert 0 < saved["global_step"] < 8
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_loss_that_is_not_finite_can_be_skipped(dropkey: Dropkey) -> None:
    outcome = dropkey(*QUICKSTART, *DIVERGES, "--on_nonfinite_loss", "skip")
    assert outcome.code == 0
    assert "warning: 7 batches were skipped in all, " in outcome.out
    assert "not finite; nothing was learnt in the last 7 steps\n" in outcome.out
    counted = [row["train/skipped_batches"] for row in read_csv(VERSION / "metrics.csv")]
    assert [float(count) for count in counted if count] == [1, 3, 5, 7]
    weights = torch.load(VERSION / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


# Memory


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB.")


@pytest.mark.parametrize(("step", "phase"), [("training_step", "training"), ("validation_step", "validation")])
def test_memory_that_runs_out_in_fit_is_one_sentence_with_the_options_that_help(
    step: str, phase: str, dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, step, out_of_memory)
    outcome = dropkey(*QUICKSTART, *ONE_STEP)
    assert outcome.code == 1
    assert outcome.err == (
        f"dropkey: error: the memory of the cpu device ran out in {phase}, with batches of 32 images: give "
        "--data.batch_size 16 --trainer.accumulate_grad_batches 2 (as many images per step, so the same learning rate), "
        "or --model.grad_checkpointing true, or a smaller --data.image_size (now 16)\n"
    )


def test_the_options_that_help_leave_the_images_per_step_and_the_learning_rate(dropkey: Dropkey) -> None:
    plans = []
    for words in ([], ["--data.batch_size=16", "--trainer.accumulate_grad_batches=2"]):
        out = dropkey(*QUICKSTART, "--model.lr=null", *ONE_STEP, *words).out
        plans.append((re.findall(r"lr \S+,", out)[0], re.findall(r"steps? of (\d+) images", out)[0]))
    assert plans[0] == plans[1]
    assert plans[0][1] == "32"


def test_memory_that_runs_out_after_a_checkpoint_says_how_to_go_on(dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(99))
    original = Classification.training_step

    def step(self: Classification, batch: Any, index: int) -> Any:  # noqa: ANN401 - as Lightning's
        return out_of_memory() if next(calls) > 4 else original(self, batch, index)

    monkeypatch.setattr(Classification, "training_step", step)
    outcome = dropkey(*QUICKSTART, "--trainer.max_epochs=2", "--trainer.limit_train_batches=4")
    first, second = outcome.err.splitlines()
    assert outcome.code == 1
    assert first == f"the last checkpoint is that of step 4; continue with: dropkey fit --resume {VERSION}"
    assert second.startswith("dropkey: error: the memory of the cpu device ran out in training, with batches of 32 images")
    log = (VERSION / "run.log").read_text()
    assert "ran out in training" in log
    assert "the last checkpoint is that of step 4" in log


@pytest.mark.parametrize(("command", "phase"), [("test", "the test"), ("predict", "prediction")])
def test_memory_that_runs_out_elsewhere_needs_smaller_batches(
    command: str, phase: str, trained: Path, dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, f"{command}_step", out_of_memory)
    Image.new("L", (8, 8)).save("a.png")
    outcome = dropkey(command, "--ckpt_path", str(trained / VERSION), "--data.root=a.png", "--data.batch_size=4")
    assert outcome.code == 1
    assert f"ran out in {phase}, with batches of 4 images: give --data.batch_size 2" in outcome.err
    assert "accumulate" not in outcome.err
    assert outcome.err.count("\n") == 1


# torch's handler of SIGCHLD raises wherever this process is, in a destructor, too
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_loading_process_is_one_sentence(dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is full

    monkeypatch.setattr(ImageDataset, "__getitem__", killed)
    outcome = dropkey(*QUICKSTART, *ONE_STEP, "--data.num_workers=1")
    assert outcome.code == 1
    assert re.match(
        r"dropkey: error: a process that loads images \(number \d+\) (was ended by the signal 'Killed'|has ended unexpectedly)"
        r", mostly because .*: give fewer --data.num_workers, e.g. 2, or a smaller --data.batch_size\n$",
        outcome.err,
    )


# Loggers


def test_tensorboard_has_what_metrics_csv_has_also_of_a_resumed_run(dropkey: Dropkey) -> None:
    short = ("--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=2", "--trainer.limit_val_batches=1",
             "--report=false")  # fmt: skip
    assert dropkey("fit", "--config", "quickstart", "--trainer.max_epochs=1", "--logger=tensorboard", *short).code == 0
    assert dropkey("fit", "--resume=last", "--trainer.max_epochs=2").code == 0
    events = EventAccumulator(str(VERSION / "tensorboard"))
    events.Reload()
    shown = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    rows = read_csv(VERSION / "metrics.csv")
    logged = {(tag, int(row["step"])): float(value) for row in rows for tag, value in row.items() if value and tag != "step"}
    assert shown == {key: pytest.approx(value) for key, value in logged.items()}
    assert len(shown) > 30


def test_a_logger_that_is_not_there_is_refused_before_there_is_a_folder(refused: Refused) -> None:
    assert "--logger 'tensorbord' is unknown" in refused(*QUICKSTART, "--logger=tensorbord")
    assert "a logger is given by its name as --logger tensorboard" in refused(*QUICKSTART, "--trainer.logger=tensorboard")
