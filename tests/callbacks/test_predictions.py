import csv
import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from dropkey_cli.callbacks.prediction_table import Choice, Table, prediction_table, rows
from dropkey_cli.callbacks.predictions import PredictionWriter
from dropkey_cli.errors import InputError

NAMES = ["ant", "bee", "cat, or dog"]
MODULE: Any = None  # not looked at
PROBABILITIES = torch.tensor([[0.2, 0.7, 0.1], [0.4, 0.3, 0.3], [0.0, 0.25, 0.75]])


def trainer(world_size: int = 1, rank: int = 0) -> Any:  # noqa: ANN401 - the little of a trainer that the writer looks at
    return SimpleNamespace(
        world_size=world_size,
        is_global_zero=rank == 0,
        datamodule=SimpleNamespace(class_names=NAMES),
        predict_loop=SimpleNamespace(),
    )


def batch(*paths: str, broken: str = "") -> Any:  # noqa: ANN401 - a Batch
    return {"path": list(paths), "error": ["cannot, be read" if path == broken else "" for path in paths]}


def write(output: Path, top_k: int = 5) -> PredictionWriter:
    writer = PredictionWriter(str(output), top_k)
    writer.on_predict_start(trainer(), MODULE)
    writer.on_predict_batch_end(trainer(), MODULE, {"probability": PROBABILITIES[:2]}, batch("b.png", "a.png", broken="a.png"))
    writer.on_predict_batch_end(trainer(), MODULE, {"probability": PROBABILITIES[2:]}, batch("c é.png"))
    return writer


def test_file_in_input_order_with_a_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "folder" / "p.csv"
    write(output).on_predict_end(trainer(), MODULE)
    with output.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == ["b.png", "a.png", "c é.png"]
    assert [row["prediction"] for row in table] == ["bee", "", "cat, or dog"]
    assert [row["error"] for row in table] == ["", "cannot, be read", ""]
    assert list(table[0])[-2:] == ["top3_class", "top3_probability"]  # no more than there are classes
    assert capsys.readouterr().out == f"3 rows, 1 of them unreadable (see the error column) in {output}\n"
    assert [file.name for file in output.parent.iterdir()] == ["p.csv"]


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    output.write_text("earlier")
    writer = write(output)
    assert output.read_text() == "earlier"
    writer.on_predict_end(trainer(), MODULE)
    assert output.read_text().startswith("path,")
    assert (tmp_path / "p.1.csv").read_text() == "earlier"


def test_an_exception_leaves_nothing_half_written(tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    output.write_text("earlier")
    write(output).on_exception(trainer(), MODULE, RuntimeError())
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("p.csv", "earlier")]
    PredictionWriter(str(output)).on_exception(trainer(), MODULE, RuntimeError())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_full_disk_leaves_nothing_half_written(suffix: str, tmp_path: Path) -> None:
    writer = write(tmp_path / f"p{suffix}")
    full: Any = writer._file
    full._file.close()
    full._file = open("/dev/full", "wb" if suffix == ".parquet" else "w")  # noqa: SIM115 - the writer closes it
    if suffix == ".csv":
        full._file.write("a row")
    writer.on_exception(trainer(), MODULE, OSError(errno.ENOSPC, "full"))
    assert list(tmp_path.iterdir()) == []


def test_lightning_is_told_to_keep_no_probabilities(tmp_path: Path) -> None:
    watched = trainer()
    writer = PredictionWriter(str(tmp_path / "p.csv"))
    writer.on_predict_start(watched, MODULE)
    assert watched.predict_loop.return_predictions is False
    writer.on_exception(watched, MODULE, RuntimeError())


def table(*paths: str) -> Table:
    return prediction_table(paths, [""] * len(paths), {"probability": PROBABILITIES[: len(paths)]}, NAMES, Choice(1))


def test_the_first_process_writes_the_rows_of_all_in_input_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Five images on three processes: a d | b e | c and padding, in batches of two
    of_others = [table("b", "e"), table("c", "")]

    def gather(own: Table, gathered: list[Any] | None) -> None:
        assert gathered is not None
        gathered[:] = [own, *of_others]

    monkeypatch.setattr(torch.distributed, "gather_object", gather)
    first = trainer(world_size=3)
    writer = PredictionWriter(str(tmp_path / "p.csv"), top_k=1)
    writer.on_predict_start(first, MODULE)
    writer.on_predict_batch_end(first, MODULE, {"probability": PROBABILITIES[:2]}, batch("a", "d"))
    writer.on_predict_end(first, MODULE)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["a", "b", "c", "d", "e"]
    assert writer.num_rows == 5


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(torch.distributed, "gather_object", lambda own, gathered: sent.append((list(rows(own)), gathered)))
    other = trainer(world_size=2, rank=1)
    writer = PredictionWriter(str(tmp_path / "p.csv"), top_k=1)
    writer.on_predict_start(other, MODULE)
    writer.on_predict_batch_end(other, MODULE, {"probability": PROBABILITIES[:1]}, batch("b"))
    writer.on_predict_end(other, MODULE)
    assert sent == [([("b", "bee", 0.7, None)], None)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"), [({"top_k": 0}, "--top_k 0: give"), ({"threshold": 1.5}, r"--threshold 1\.5: give")]
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PredictionWriter(**options)


def test_places_that_cannot_be_written_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path, "is a folder: give a file"),
        (tmp_path / "file" / "p.csv", "cannot write --output"),
        (tmp_path / "p.xlsx", r"p\.xlsx': give a file that ends in \.csv, \.jsonl, \.parquet"),
    ):
        with pytest.raises(InputError, match=message):
            PredictionWriter(str(output)).on_predict_start(trainer(), MODULE)


PREDICT = """
import sys
import torch
from lightning import LightningModule, Trainer
from dropkey_cli.callbacks.predictions import PredictionWriter
from dropkey_cli.data.image_folder import ImageFolder

class Even(LightningModule):
    def predict_step(self, batch, index):
        return {"probability": torch.full((len(batch["path"]), 10_000), 1e-4)}

names = [str(number) for number in range(10_000)]
data = ImageFolder(
    sys.argv[1], class_names=names, image_size=4, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest", crop_pct=1.0,
    num_workers=0,
)
options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
trainer = Trainer(accelerator="cpu", callbacks=PredictionWriter(sys.argv[1] + sys.argv[2], 1), **options)
trainer.predict(Even(), data)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_images(suffix: str, tmp_path: Path) -> None:
    peaks = []
    for count in (300, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            Image.new("RGB", (4, 4)).save(folder / f"{number}.bmp")
        words = [sys.executable, "-c", PREDICT, str(folder), suffix]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert f"{count} rows in" in done.stdout
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 15  # MiB; the probabilities of 9,700 images are 370
