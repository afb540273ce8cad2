import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from sklearn.metrics import confusion_matrix, f1_score
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.report.attention import AttentionMaps, attention_maps
from dropkey_cli.report.charts import short
from dropkey_cli.report.numbers import read_numbers, write_numbers
from dropkey_cli.report.predictions import Outcomes, Predictions, write_predictions
from dropkey_cli.report.scores import ClassScores, worst_mistakes, write_scores
from dropkey_cli.report.write import MATRIX, Sources, write_report
from tests.report.conftest import NAMES
from tests.report.pages import assert_self_contained


@pytest.fixture
def sources(tmp_path: Path, predictions: Predictions, image: Callable[[int], Tensor]) -> Sources:
    """All that a report can be made of; its predictions lie in the folder."""
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/acc1\n0,9,1.5,\n0,9,,0.7\n")
    (tmp_path / "drop_ratio.csv").write_text("step,layer,configured,observed,dropped,draws\n9,<b>,0.3,0.31,31,100\n")
    write_numbers(tmp_path, {"epoch": 0, "step": 10, "val/acc1": 0.7, "val/loss": float("nan")})
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, embed_dim=24).eval()
    plan = apply_dropkey(model, DropKeySettings())
    return Sources(
        tmp_path, "val", "run <b>", "validation", NAMES, [("data", "<i>")], tmp_path / "metrics.csv",
        tmp_path / "drop_ratio.csv", len(predictions.index), image, lambda images: attention_maps(model, plan, images / 255),
    )  # fmt: skip


def test_the_page_is_self_contained_and_shows_names_as_they_are(sources: Sources, predictions: Predictions) -> None:
    path = write_report(sources)
    mistake = predictions.path[worst_mistakes(predictions, 1)[0]]
    page = assert_self_contained(path.read_text(encoding="utf-8"))
    for text in ("run <b>", "<i>", *(short(name, 60) for name in NAMES), mistake, "optimizer steps", "rollout"):
        assert text in page.text, text
    assert page.tags.count("svg") == 2 + 1 + 1 + 1  # curves, confusion, calibration, drop ratios
    files = {file.name for file in sources.folder.iterdir()}
    assert files == {
        "report.html", "metrics.json", "predictions.csv", "per_class.csv", "confusion.csv", "confusion.png", "calibration.png",
        "metrics.csv", "drop_ratio.csv",
    }  # fmt: skip


def test_a_report_drawn_again_is_the_same(sources: Sources) -> None:
    first = {file: file.read_bytes() for file in write_report(sources).parent.iterdir()}
    assert {file: file.read_bytes() for file in write_report(sources).parent.iterdir()} == first


def test_numbers_and_tables_are_those_of_scikit_learn(sources: Sources, predictions: Predictions) -> None:
    write_report(sources)
    numbers = read_numbers(sources.folder)
    present = f1_score(predictions.label, predictions.prediction, labels=range(3), average="macro")
    assert numbers["val/macro_f1"] == pytest.approx(present)
    assert (numbers["epoch"], numbers["val/acc1"], numbers["val/loss"], numbers["val/images"]) == (0, 0.7, None, 200)
    assert 0 < numbers["val/calibration_error"] < 1
    rows = list(
        csv.reader((sources.folder / "confusion.csv").read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    )
    assert rows[0][1:] == [row[0] for row in rows[1:]] == NAMES
    expected = confusion_matrix(predictions.label, predictions.prediction, labels=range(4))
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == expected.tolist()
    classes = list(
        csv.DictReader((sources.folder / "per_class.csv").read_text(encoding="utf-8", errors="surrogateescape").splitlines())
    )
    f1 = f1_score(predictions.label, predictions.prediction, labels=range(4), average=None, zero_division=0)
    assert [float(row["f1"]) for row in classes] == pytest.approx(f1.tolist(), abs=1e-6)
    assert [row["class"] for row in classes] == NAMES


def test_a_report_of_nothing_but_curves(sources: Sources) -> None:
    (sources.folder / "predictions.csv").unlink()
    (sources.folder / "metrics.json").unlink()
    path = write_report(replace(sources, drop_ratios=None, image=None, attention=None))
    page = assert_self_contained(path.read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 2
    assert "Confusions" not in page.text


def test_any_number_of_classes_per_image_has_a_table_of_classes(sources: Sources) -> None:
    (sources.folder / "predictions.csv").unlink()
    write_numbers(sources.folder, {"val/map": 0.25, "val/f1_macro": 0.5})
    write_scores(sources.folder / "per_class.csv", [ClassScores(name, 3, 0.125, 1.0, 0.25) for name in NAMES])
    page = assert_self_contained(write_report(sources).read_text(encoding="utf-8"))
    for text in (*(short(name, 60) for name in NAMES), "0.125", "mean average precision", "macro F1", "above 0.5"):
        assert text in page.text, text
    assert "Confusions" not in page.text


def test_maps_that_cannot_be_drawn_are_a_sentence(sources: Sources) -> None:
    def refuse(images: Tensor) -> AttentionMaps:
        raise InputError("no layer <here>")

    page = assert_self_contained(write_report(replace(sources, attention=refuse)).read_text(encoding="utf-8"))
    assert "Left out: no layer <here>" in page.text


def test_more_classes_than_anyone_reads_have_no_matrix(tmp_path: Path, outcomes: Callable[..., Outcomes]) -> None:
    names = [f"class {number}" for number in range(MATRIX + 1)]
    write_predictions(tmp_path / "predictions.csv", outcomes(300, MATRIX + 1), names)
    text = write_report(Sources(tmp_path, "test", "many", "", names)).read_text(encoding="utf-8")
    assert {file.name for file in tmp_path.iterdir()} == {
        "predictions.csv", "metrics.json", "per_class.csv", "calibration.png", "report.html",
    }  # fmt: skip
    assert len(text) < 200_000
    assert "more in per_class.csv" in text


def test_a_network_that_is_always_right_has_no_mistakes(tmp_path: Path) -> None:
    outcomes = Outcomes.of(torch.eye(3), label=torch.arange(3), index=torch.arange(3), paths=list("abc"))
    write_predictions(tmp_path / "predictions.csv", outcomes, list("xyz"))
    page = assert_self_contained(write_report(Sources(tmp_path, "test", "right", "", list("xyz"))).read_text(encoding="utf-8"))
    assert "mistakes" not in page.text
    assert "No image was taken for another class" in page.text


def test_both_maps_of_an_image_have_one_scale(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    def maps(images: Tensor) -> AttentionMaps:
        plain = torch.full((len(images), 2, 2), 0.25)
        return AttentionMaps({"rollout": plain}, {"rollout": plain * torch.tensor([[0.0, 1.0], [1.0, 2.0]])}, "class token")

    scales: list[float] = []

    def overlay(*_: object, largest: float) -> str:
        scales.append(largest)
        return "data:x"

    monkeypatch.setattr("dropkey_cli.report.write.overlay", overlay)
    write_report(replace(sources, attention=maps, metrics=None, drop_ratios=None))
    assert scales == [0.5] * 8  # the brightest of either, for four images
