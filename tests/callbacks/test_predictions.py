import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from dropkey_cli.callbacks.predictions import PredictionWriter, header, rows
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
    writer.on_predict_batch_end(trainer(), MODULE, PROBABILITIES[:2], batch("b.png", "a.png", broken="a.png"))
    writer.on_predict_batch_end(trainer(), MODULE, PROBABILITIES[2:], batch("c é.png"))
    return writer


def test_columns_that_scripts_rely_on() -> None:
    assert header(1) == ["path", "prediction", "probability", "error"]
    assert header(3) == [*header(1), "top2_class", "top2_probability", "top3_class", "top3_probability"]


def test_rows_by_falling_probability() -> None:
    written = list(rows(["a", "b", "c"], ["", "broken", ""], PROBABILITIES, NAMES, 2))
    assert written == [
        ["a", "bee", "0.700000", "", "ant", "0.200000"],
        ["b", "", "", "broken", "", ""],
        ["c", "cat, or dog", "0.750000", "", "bee", "0.250000"],
    ]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_every_row_has_every_column(top_k: int) -> None:
    for row in rows(["a", "b", "c"], ["", "broken", ""], PROBABILITIES, NAMES, top_k):
        assert len(row) == len(header(top_k))


def test_file_in_input_order_with_a_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "folder" / "p.csv"
    write(output).on_predict_end(trainer(), MODULE)
    with output.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == ["b.png", "a.png", "c é.png"]
    assert [row["prediction"] for row in table] == ["bee", "", "cat, or dog"]
    assert [row["error"] for row in table] == ["", "cannot, be read", ""]
    assert list(table[0]) == header(3)  # no more than there are classes
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


def test_lightning_is_told_to_keep_no_probabilities(tmp_path: Path) -> None:
    watched = trainer()
    writer = PredictionWriter(str(tmp_path / "p.csv"))
    writer.on_predict_start(watched, MODULE)
    assert watched.predict_loop.return_predictions is False
    writer.on_exception(watched, MODULE, RuntimeError())


def test_the_first_process_writes_the_rows_of_all_in_input_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Five images on three processes: a d | b e | c and padding, in batches of two
    dealt = [["a", "d"], ["b", "e"], ["c", ""]]
    rows_of_others = [list(rows(paths, ["", ""], PROBABILITIES[:2], NAMES, 1)) for paths in dealt[1:]]
    assert [len(own) for own in rows_of_others] == [2, 1]  # padding has no row

    def gather(own: list[list[str]], gathered: list[Any] | None) -> None:
        assert gathered is not None
        gathered[:] = [own, *rows_of_others]

    monkeypatch.setattr(torch.distributed, "gather_object", gather)
    first = trainer(world_size=3)
    writer = PredictionWriter(str(tmp_path / "p.csv"), top_k=1)
    writer.on_predict_start(first, MODULE)
    writer.on_predict_batch_end(first, MODULE, PROBABILITIES[:2], batch(*dealt[0]))
    writer.on_predict_end(first, MODULE)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["a", "b", "c", "d", "e"]
    assert writer.num_rows == 5


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(torch.distributed, "gather_object", lambda own, gathered: sent.append((own, gathered)))
    other = trainer(world_size=2, rank=1)
    writer = PredictionWriter(str(tmp_path / "p.csv"), top_k=1)
    writer.on_predict_start(other, MODULE)
    writer.on_predict_batch_end(other, MODULE, PROBABILITIES[:1], batch("b"))
    writer.on_predict_end(other, MODULE)
    assert sent == [([["b", "bee", "0.700000", ""]], None)]
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, message in ((tmp_path, "is a folder: give a file"), (tmp_path / "file" / "p.csv", "cannot write --output")):
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
        return torch.full((len(batch["path"]), 10_000), 1e-4)

names = [str(number) for number in range(10_000)]
data = ImageFolder(
    sys.argv[1], class_names=names, image_size=4, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest", crop_pct=1.0,
    num_workers=0,
)
options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
trainer = Trainer(accelerator="cpu", callbacks=PredictionWriter(sys.argv[1] + ".csv", 1), **options)
trainer.predict(Even(), data)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 3000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            Image.new("RGB", (4, 4)).save(folder / f"{number}.bmp")
        done = subprocess.run([sys.executable, "-c", PREDICT, str(folder)], capture_output=True, text=True, check=True)
        assert len((tmp_path / f"{count}.csv").read_text().splitlines()) == 1 + count
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 15  # MiB; the probabilities of 2,700 images are 103
