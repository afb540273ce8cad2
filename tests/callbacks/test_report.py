"""The report of whole runs: on one and two processes, interrupted, switched off, and broken."""

import csv
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from dropkey_cli.callbacks.report import Report, _weights, report_folder
from dropkey_cli.report.predictions import read_predictions
from tests.commands.forks import QUICKSTART, RUN, log, run, run_on, signal_itself
from tests.report.pages import assert_self_contained

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python 3.12 on: this process has threads
]
FIT = (
    "fit", "--config", QUICKSTART, "--trainer.max_epochs=3", "--trainer.limit_train_batches=6", "--trainer.log_every_n_steps=2",
    "--data.batch_size=32",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of three short epochs."""
    folder = tmp_path_factory.mktemp("reported")
    assert run(FIT, folder) == 0, log(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_report_is_that_of_the_best_checkpoint(trained: Path) -> None:
    report = trained / RUN / "report"
    assert log(trained).splitlines()[-1] == f"report: {RUN / 'report' / 'report.html'}"
    page = assert_self_contained((report / "report.html").read_text(encoding="utf-8"))
    assert "quickstart / version_0" in page.text
    assert "one mask" in page.text
    assert run(["validate", "--ckpt_path=best"], trained) == 0
    assert log(trained).splitlines()[-1] == f"report: {RUN / 'report_validate' / 'report.html'}"
    found, again = files(report), files(trained / RUN / "report_validate")
    for name in ("predictions.csv", "per_class.csv", "confusion.csv"):
        assert found[name] == again[name], name
    numbers, others = json.loads(found["metrics.json"]), json.loads(again["metrics.json"])
    assert {name: numbers[name] for name in others} == pytest.approx(others)
    saved = torch.load(trained / RUN / "checkpoints/best.ckpt", weights_only=True)
    assert (numbers["epoch"], numbers["step"]) == (saved["epoch"], saved["global_step"])
    predictions = read_predictions(report / "predictions.csv")
    assert predictions.index == list(range(359))
    assert sum(predictions.correct) / 359 == pytest.approx(numbers["val/acc1"])


def test_two_processes_report_what_one_does_and_nothing_is_overwritten(trained: Path) -> None:
    words = ["test", "--ckpt_path=last", "--data.batch_size=7"]
    assert run(words, trained) == 0
    assert run_on(2, [*words, "--trainer.strategy=ddp"], trained) == [0, 0], log(trained)
    assert "is now" in log(trained)
    alone, together = files(trained / RUN / "report_test.1"), files(trained / RUN / "report_test")
    assert alone["confusion.csv"] == together["confusion.csv"]
    assert alone["per_class.csv"] == together["per_class.csv"]
    one, two = (read_predictions(trained / RUN / name / "predictions.csv") for name in ("report_test.1", "report_test"))
    assert (one.index, one.path, one.label, one.prediction) == (two.index, two.path, two.label, two.prediction)
    assert one.index == list(range(359))
    assert one.probability == pytest.approx(two.probability, abs=2e-6)


def test_a_run_that_was_stopped_and_went_on_has_the_report_of_one_that_was_not(tmp_path: Path, trained: Path) -> None:
    assert run(FIT, tmp_path, prepare=signal_itself(signal.SIGTERM, batch=15)) == 143, log(tmp_path)
    report = tmp_path / RUN / "report"
    assert {file.name for file in report.iterdir()} == {"predictions.csv", "metrics.json"}  # of the best epoch so far
    assert run(["fit", "--resume", str(RUN)], tmp_path) == 0, log(tmp_path)
    assert files(report) == files(trained / RUN / "report")


def test_a_report_can_be_left_out_and_a_broken_one_costs_a_line(tmp_path: Path) -> None:
    def break_it() -> None:
        import dropkey_cli.report.write

        def broken(sources: dropkey_cli.report.write.Sources) -> Path:
            raise RuntimeError("no\nink")

        dropkey_cli.report.write.write_report = broken

    short = [*FIT, "--trainer.max_epochs=1"]
    assert run([*short, "--report=false"], tmp_path) == 0
    assert not (tmp_path / RUN / "report").exists()
    assert log(tmp_path).splitlines()[-1].startswith("next: ")
    assert run(short, tmp_path, prepare=break_it) == 0
    assert log(tmp_path).splitlines()[-1] == (
        "dropkey: warning: no report in runs/quickstart/version_1/report (RuntimeError: no ink)"
    )
    assert (tmp_path / "runs/quickstart/version_1/checkpoints/best.ckpt").is_file()


def a_trainer(**more: Any) -> Any:  # noqa: ANN401 - what of a Trainer is needed
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    data = SimpleNamespace(class_names=["a", "b"])
    known = {"sanity_checking": False, "is_global_zero": True, "world_size": 1, "current_epoch": 0, "global_step": 4}
    return SimpleNamespace(state=state, datamodule=data, callback_metrics={"val/acc1": torch.tensor(0.5)}, **known, **more)


def batch(**more: Any) -> Any:  # noqa: ANN401 - a Batch
    known = {"label": torch.tensor([0, 1, -1, 1]), "index": torch.tensor([5, 6, -1, 7]), "path": ["a", "b", "", "c"]}
    return {**known, "error": ["", "broken", "", ""], **more}


def kept(folder: Path, outputs: Any, given: Any) -> list[dict[str, str]]:  # noqa: ANN401 - of a task
    report = Report(folder, run=None)
    report.on_validation_epoch_start(a_trainer(), None)  # type: ignore[arg-type]  # no module is needed
    report.on_validation_batch_end(a_trainer(), None, outputs, given, 0)  # type: ignore[arg-type]
    report.on_validation_end(a_trainer(), None)  # type: ignore[arg-type]
    assert json.loads((folder / "metrics.json").read_text()) == {"epoch": 0, "step": 4, "val/acc1": 0.5}
    path = folder / "predictions.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def test_an_epoch_that_is_not_the_best_changes_nothing(tmp_path: Path) -> None:
    best: Any = SimpleNamespace(monitor="val/acc1", check_monitor_top_k=lambda _, value: bool(value > 0.4))
    report, trainer, module = Report(tmp_path, run=None, best=best), a_trainer(), None
    for epoch, accuracy in enumerate((0.5, 0.3)):
        trainer.current_epoch, trainer.callback_metrics["val/acc1"] = epoch, torch.tensor(accuracy)
        report.on_validation_epoch_start(trainer, module)  # type: ignore[arg-type]  # no module is needed
        report.on_validation_batch_end(trainer, module, torch.rand(4, 2), batch(), 0)  # type: ignore[arg-type]
        report.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"epoch": 0, "step": 4, "val/acc1": 0.5}


def test_a_look_with_the_weights_of_a_checkpoint_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    module, best = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    torch.save({"state_dict": best.state_dict()}, tmp_path / "best.ckpt")
    before = module.weight.clone()
    with pytest.raises(KeyboardInterrupt), _weights(module, tmp_path / "best.ckpt"):  # type: ignore[arg-type]  # of any module
        assert torch.equal(module.weight, best.weight)
        raise KeyboardInterrupt
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("whole", [True, False])
def test_padding_and_unreadable_images_do_not_count(tmp_path: Path, whole: bool) -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    rows = kept(tmp_path, probabilities if whole else probabilities[[0, 3]], batch())
    assert [(row["index"], row["path"], row["probability"]) for row in rows] == [("5", "a", "0.900000"), ("7", "c", "0.800000")]


@pytest.mark.parametrize(
    ("outputs", "given"),
    [
        (torch.rand(4, 2), batch(label=torch.ones(4, 2))),  # several classes per image
        (None, batch()),
        (torch.tensor(0.5), batch()),
        (torch.rand(4, 2), [torch.rand(4, 3), torch.zeros(4)]),
    ],
    ids=["multi-label", "nothing", "a loss", "another batch"],
)
def test_other_tasks_have_no_predictions(tmp_path: Path, outputs: Any, given: Any) -> None:  # noqa: ANN401 - of any task
    assert kept(tmp_path, outputs, given) == []


def test_any_number_of_classes_per_image_is_counted_by_class(tmp_path: Path) -> None:
    report, task = Report(tmp_path, run=None), cast(Any, SimpleNamespace(multi_label=True))
    report.on_validation_epoch_start(a_trainer(), task)
    said = torch.tensor([[0.9, 0.1], [0.9, 0.9], [0.9, 0.9], [0.2, 0.8]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    for _ in range(2):  # the second image of each could not be read, the third is padding
        report.on_validation_batch_end(a_trainer(), task, said, batch(label=labels), 0)
    report.on_validation_end(a_trainer(), task)
    assert not (tmp_path / "predictions.csv").exists()
    assert (tmp_path / "per_class.csv").read_text().splitlines() == [
        "class,images,precision,recall,f1", "a,4,1.000000,0.500000,0.666667", "b,2,1.000000,1.000000,1.000000",
    ]  # fmt: skip


def test_images_without_a_label_are_left_out(tmp_path: Path) -> None:
    rows = kept(tmp_path, torch.rand(4, 2), batch(label=torch.tensor([0, 1, 1, -1]), error=[""] * 4))
    assert [row["index"] for row in rows] == ["5", "6"]


def test_a_report_lies_with_the_run_of_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "runs/a/version_0"
    (run / "checkpoints").mkdir(parents=True)
    assert report_folder("test", run / "checkpoints/best.ckpt") == (Path("report_test"), None)
    (run / "config.yaml").touch()
    assert report_folder("test", run / "checkpoints/best.ckpt") == (run / "report_test", run)
    assert report_folder("validate", Path("best.ckpt")) == (Path("report_validate"), None)
