"""Images in folders and tables from the words to the files: one run whatever the format, one label or several."""

import csv
import json
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from sklearn.metrics import average_precision_score, f1_score

from tests.commands.forks import log, run, run_on, signal_itself

Dropkey = Callable[..., Any]
SMALL = ("--model.model_name=vit_tiny_patch16_224", "--model.pretrained=false",
         "--model.model_args={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}", "--data.image_size=32",
         "--data.num_workers=0", "--trainer.accelerator=cpu", "--model.lr=1e-3", "--data.batch_size=5",
         "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", "--report=false")  # fmt: skip
RUNS = Path("runs/vit_tiny_patch16_224")
forked = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python 3.12 on: this process has threads
]


def picture(file: Path, colours: Iterable[int], generator: torch.Generator) -> None:
    """Noise that is brighter in some of the three colours."""
    pixels = torch.randint(0, 150, (40, 36, 3), generator=generator)
    pixels[..., list(colours)] += 100
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.byte().numpy()).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of three classes in folders, and the same listed in CSV, JSONL and parquet, each in another order."""
    generator, records = torch.Generator().manual_seed(0), []
    for colour, name in enumerate(("ant", "bee", "cat")):
        for number in range(9 + colour):
            picture(tmp_path / "photos" / name / f"{number}.png", [colour], generator)
            records.append({"file_name": f"{name}/{number}.png", "label": name})
    write_tables(tmp_path / "photos", records)
    return tmp_path / "photos"


def write_tables(folder: Path, records: list[dict[str, Any]], *, separator: str | None = None) -> None:
    shuffle = random.Random(0).shuffle
    shuffle(records)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows({**one, "label": separator.join(one["label"])} if separator else one for one in records)
    shuffle(records)
    (folder / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    shuffle(records)
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / "labels.parquet")


def metrics(number: int = 0, folder: Path = Path()) -> list[dict[str, str]]:
    with (folder / RUNS / f"version_{number}" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def printed(out: str) -> dict[str, float]:
    cells = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if line.count("│") == 3]
    return {row[1]: float(row[2]) for row in cells}


def config(number: int) -> Any:  # noqa: ANN401 - YAML
    return yaml.safe_load((RUNS / f"version_{number}" / "config.yaml").read_text())


def test_a_fine_tune_gives_the_same_numbers_from_every_format(photos: Path, dropkey: Dropkey) -> None:
    for number, name in enumerate(("", "labels.csv", "labels.jsonl", "labels.parquet")):
        outcome = dropkey("fit", "--data.root", str(photos / name), *SMALL)
        assert outcome.code == 0, outcome.err
        assert metrics(number) == metrics(0)
        assert config(number)["data"]["class_path"].endswith(".ImageTable" if name else ".ImageFolder")
        weights = [
            torch.load(RUNS / f"version_{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in (0, number)
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert len({row["train/loss"] for row in metrics(0)}) > 10


def test_the_kind_of_the_given_root_wins(photos: Path, dropkey: Dropkey) -> None:
    assert dropkey("fit", "--data.root", str(photos), *SMALL, "--data.val_fraction=0.3").code == 0
    validated = printed(dropkey("validate", "--ckpt_path=last").out)
    assert printed(dropkey("validate", "--ckpt_path=last", "--data.root", str(photos / "labels.csv")).out) == validated
    tested = dropkey("test", "--ckpt_path=last", "--data.test_root", str(photos / "labels.parquet"))
    assert printed(tested.out).keys() == {"test/loss", "test/acc1", "test/balanced_acc"}
    Path("c.yaml").write_text(f"data: {{root: {photos}/labels.jsonl, label_column: label}}")
    config_file = str(RUNS / "version_0/config.yaml")
    outcome = dropkey("fit", "--config", config_file, "--config", "c.yaml", "--data.root", str(photos / "labels.jsonl"))
    assert outcome.code == 0, outcome.err
    assert metrics(1) == metrics(0)
    assert config(1)["data"]["init_args"]["val_fraction"] == 0.3
    assert printed(dropkey("validate", "--ckpt_path=last", "--data.root", str(photos)).out) == validated


def test_a_table_with_other_classes_is_refused(photos: Path, dropkey: Dropkey) -> None:
    assert (
        dropkey("fit", "--data.root", str(photos / "labels.csv"), *SMALL, "--trainer.max_epochs=1", "--report=true").code == 0
    )
    assert (RUNS / "version_0/report/report.html").is_file()
    Path("other.csv").write_text("path,label\nx.png,ant\ny.png,dog\n")
    outcome = dropkey("test", "--ckpt_path=last", "--data.test_root=other.csv", "--data.on_error=skip")
    assert outcome.code == 2
    assert "1 row(s) cannot be used: other.csv:3 has an unknown label, 'dog'" in outcome.err
    assert "one of the classes 'ant', 'bee', 'cat'" in outcome.err


# Several labels per image


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with pictures of any number of three colours, listed in every format."""
    folder, generator, records = tmp_path_factory.mktemp("multi"), torch.Generator().manual_seed(0), []
    for number in range(43):
        colours = [colour for colour in range(3) if torch.rand((), generator=generator) < (0.6, 0.4, 0.2)[colour]]
        picture(folder / "photos" / f"{number:02}.png", colours, generator)
        records.append({"path": f"{number:02}.png", "label": [("red", "green", "blue")[colour] for colour in colours]})
    write_tables(folder / "photos", records, separator="|")
    yield folder


CSV = ("--data.root=photos/labels.csv", "--data.label_separator=|")


def test_labels_with_a_separator_and_lists_are_the_same(multi: Path, dropkey: Dropkey) -> None:
    os.symlink(multi / "photos", "photos")
    for number, words in enumerate((CSV, ["--data.root=photos/labels.jsonl"], ["--data.root=photos/labels.parquet"])):
        outcome = dropkey("fit", *words, *SMALL)
        assert outcome.code == 0, outcome.err
        assert metrics(number) == metrics(0)
    assert "best val/map" in outcome.out
    assert config(0)["model"]["class_path"].endswith(".MultiLabelClassification")
    best = max(float(row["val/map"]) for row in metrics(0) if row["val/map"])
    assert best == pytest.approx(float(outcome.out.split("best val/map ")[1].split(":")[0]), abs=1e-4)


def test_metrics_equal_scikit_learns_on_the_predictions(multi: Path, dropkey: Dropkey) -> None:
    os.symlink(multi / "photos", "photos")
    assert dropkey("fit", *CSV, *SMALL, "--report=true").code == 0
    assert (RUNS / "version_0/report/report.html").is_file()
    tested = printed(dropkey("test", "--ckpt_path=last", "--data.test_root=photos/labels.jsonl").out)
    assert dropkey("predict", "--ckpt_path=last", "--data.root=photos").code == 0
    true, scores, classes = {}, {}, ["blue", "green", "red"]
    for line in Path("photos/labels.jsonl").read_text().splitlines():
        record = json.loads(line)
        true[record["path"]] = [name in record["label"] for name in classes]
    with Path("predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            pairs = [(row["prediction"], row["probability"])]
            pairs += [(row[f"top{rank}_class"], row[f"top{rank}_probability"]) for rank in (2, 3)]
            found = {name: float(value) for name, value in pairs}
            scores[Path(row["path"]).name] = [found[name] for name in classes]
    names = sorted(true)
    wanted, given = torch.tensor([true[name] for name in names]), torch.tensor([scores[name] for name in names])
    assert tested["test/map"] == pytest.approx(average_precision_score(wanted.numpy(), given.numpy()), abs=1e-3)
    assert tested["test/f1_micro"] == pytest.approx(f1_score(wanted.numpy(), given.numpy() > 0.5, average="micro"), abs=1e-6)


class TestProcesses:
    pytestmark = forked

    def test_two_processes_have_the_metrics_of_one(self, multi: Path) -> None:
        words = [*CSV, *SMALL, "--trainer.strategy=ddp", "--data.test_fraction=0.2"]
        assert run_on(2, ["fit", *words], multi) == [0, 0], log(multi)
        rows = [row for row in metrics(0, multi) if row["val/map"]]
        test = ["test", "--ckpt_path=last", "--data.batch_size=3"]
        assert run(["validate", "--ckpt_path=last"], multi) == 0
        alone = printed(log(multi))
        assert len(alone) == 6
        assert {name: float(rows[-1][name]) for name in alone} == pytest.approx(alone, rel=1e-6)
        assert run(test, multi) == 0
        alone = printed(log(multi))
        assert run_on(2, test, multi) == [0, 0], log(multi)
        assert printed(log(multi)) == pytest.approx(alone, rel=1e-6)

    def test_more_processes_than_images(self, multi: Path) -> None:
        (multi / "photos/few.jsonl").write_text('{"path": "00.png", "label": ["red"]}\n')
        test = ["test", "--ckpt_path=last", "--data.test_root=photos/few.jsonl"]
        assert run(test, multi) == 0
        alone = printed(log(multi))
        assert run_on(2, test, multi) == [0, 0], log(multi)
        assert printed(log(multi)) == pytest.approx(alone, rel=1e-6)

    def test_a_stopped_run_goes_on_bit_for_bit(self, multi: Path, tmp_path: Path) -> None:
        words = ["fit", *CSV, *SMALL, "--trainer.val_check_interval=4"]
        for name in ("whole", "stopped"):
            (tmp_path / name).mkdir()
            os.symlink(multi / "photos", tmp_path / name / "photos")
        assert run(words, tmp_path / "whole") == 0
        stop = signal_itself(signal.SIGTERM, batch=6)
        assert run(words, tmp_path / "stopped", prepare=stop) == 143, log(tmp_path / "stopped")
        assert run(["fit", "--resume", "last"], tmp_path / "stopped") == 0, log(tmp_path / "stopped")
        assert metrics(0, tmp_path / "stopped") == metrics(0, tmp_path / "whole")
