"""Runs on named data sets: the same numbers from every format, on one process and on two, and after a resume."""

import os
import tarfile
import time
from pathlib import Path

import pytest

from dropkey_cli.cli import main
from tests.commands.conftest import Dropkey
from tests.commands.forks import log, run, run_on, signal_itself
from tests.data.formats import write_folder, write_mnist, write_parquet, write_shards, write_streamable

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python 3.12 on: this process has threads
]
MODEL = (
    "--model.model_name=vit_tiny_patch16_224", "--model.pretrained=false", "--data.image_size=16", "--trainer.accelerator=cpu",
    '--model.model_args={"patch_size": 4, "embed_dim": 24, "num_heads": 2, "depth": 2}', "--model.lr=0.01", "--name=x",
    "--data.batch_size=6", "--data.num_workers=0", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1",
)  # fmt: skip
RUN = Path("runs/x/version_0")
FORMATS = ("photos.tar", "wds/shards", "hfds/parquet")
STREAM = "hfids/stream"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same pictures in every format, and a run on the class folders; 23 images to validate."""
    folder = tmp_path_factory.mktemp("formats")
    pytest.importorskip("datasets").disable_progress_bars()
    photos = write_folder(folder / "photos", {"train": 9, "val": 7, "test": 5}, size=20)
    (photos / "val/cat/006.png").unlink()
    with tarfile.open(folder / "photos.tar", "w") as archive:
        archive.add(photos, "photos")
    write_shards(folder / "shards", photos, per_shard=7)
    write_parquet(folder / "parquet", photos)
    write_streamable(folder / "stream", photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--data.root=photos", *MODEL]) == 0
    return folder


def numbers(text: str) -> dict[str, float]:
    """The metrics that a command printed last."""
    cells = [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if line.count("│") == 3]
    return {row[1]: float(row[2]) for row in cells}


@pytest.mark.parametrize("command", ["validate", "test"])
def test_every_format_gives_the_same_metrics(
    command: str, trained: Path, dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    expected = numbers(dropkey(command, "--ckpt_path=last").out)
    assert len(expected) == 3
    for root in (*FORMATS, STREAM):
        outcome = dropkey(command, "--ckpt_path=last", f"--data.root={root}")
        assert outcome.code == 0, outcome.err
        assert numbers(outcome.out) == expected, root


@pytest.mark.slow
@pytest.mark.parametrize("root", FORMATS)
def test_every_format_gives_the_same_run(root: str, trained: Path, tmp_path: Path) -> None:
    words = ["fit", f"--data.root={root}", *MODEL]
    for name in ("photos.tar", "shards", "parquet"):
        (tmp_path / name).symlink_to(trained / name)
    assert run(words, tmp_path) == 0, log(tmp_path)
    whole = (tmp_path / RUN / "metrics.csv").read_text()
    assert whole == (trained / RUN / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("root", [*FORMATS, STREAM])
def test_two_processes_give_the_metrics_of_one(root: str, trained: Path) -> None:
    words = ["validate", "--ckpt_path=last", f"--data.root={root}", "--data.batch_size=4"]
    assert run(words, trained) == 0
    alone = numbers(log(trained))
    assert run_on(2, words, trained) == [0, 0], log(trained)
    assert numbers(log(trained)) == pytest.approx(alone, rel=1e-6)  # sums in another order


@pytest.mark.slow
def test_a_resumed_run_on_shards_is_the_whole_one(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").symlink_to(trained / "shards")
    words = ["fit", "--data.root=wds/shards", *MODEL]
    assert run(words, tmp_path, prepare=signal_itself(15, batch=8)) == 143
    assert run(["fit", f"--resume={RUN}"], tmp_path) == 0, log(tmp_path)
    assert (tmp_path / RUN / "metrics.csv").read_text() == (trained / RUN / "metrics.csv").read_text()


@pytest.mark.slow
def test_a_resumed_run_on_a_stream_is_the_whole_one_and_has_a_report(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)
    words = ["fit", f"--data.root={STREAM}", *MODEL]
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stream").symlink_to(trained / "stream")
    assert run(words, tmp_path / "whole") == 0, log(tmp_path / "whole")
    assert (tmp_path / "whole" / RUN / "report/report.html").is_file()
    assert run(words, tmp_path / "stopped", prepare=signal_itself(15, batch=8)) == 143
    assert run(["fit", f"--resume={RUN}"], tmp_path / "stopped") == 0, log(tmp_path / "stopped")
    for file in ("metrics.csv", "report/predictions.csv"):
        assert (tmp_path / "stopped" / RUN / file).read_text() == (tmp_path / "whole" / RUN / file).read_text(), file


def test_balanced_weights_of_a_stream_are_refused(trained: Path, dropkey: Dropkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    outcome = dropkey("fit", f"--data.root={STREAM}", *MODEL, "--name=refused", "--model.class_weights=balanced")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert "class_weights is 'balanced', but a stream's classes are not counted" in outcome.err


@pytest.mark.slow
def test_a_data_set_of_torchvision_is_trained_on_by_its_name(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data")
    assert run(["fit", "--data.root=torch/mnist", *MODEL], tmp_path) == 0, log(tmp_path)
    assert "10 classes (0 - zero, 1 - one, 2 - two, 3 - three, 4 - four, …); images: train 30 · val 10 · test 20" in log(
        tmp_path
    )
    assert run(["test", "--ckpt_path=last"], tmp_path) == 0, log(tmp_path)


def test_a_data_set_that_is_not_there_is_one_line_at_once(dropkey: Dropkey) -> None:
    for root, message in (
        (
            "torch/cifar10",
            "'torch/cifar10': the folder 'data' does not exist; expected torchvision's files; give --data.data_dir, or",
        ),
        ("hfds/somebody/nothing", "'hfds/somebody/nothing' cannot be loaded (Couldn't reach 'somebody/nothing' on the Hub"),
    ):
        start = time.monotonic()
        outcome = dropkey("fit", f"--data.root={root}", *MODEL)
        assert time.monotonic() - start < 2, root
        assert outcome.code == 2
        assert outcome.err.startswith(f"dropkey: error: {message}"), outcome.err
        assert outcome.err.count("\n") == 1
        assert not list(Path("runs").rglob("version_*"))


def test_options_of_named_data_are_known_by_the_root(dropkey: Dropkey) -> None:
    outcome = dropkey("fit", "--data.root=wds/x", "--data.target_kye=label")
    assert outcome.code == 2
    assert outcome.err.startswith("dropkey: error: unknown option --data.target_kye; did you mean '--data.target_key'")
    assert "--data.class_map" in dropkey("fit", "--data.root=torch/cifar10", "--help", "data").out


def test_check_says_that_it_reads_folders_and_tables(dropkey: Dropkey) -> None:
    outcome = dropkey("check", "hfds/somebody/photos")
    assert (outcome.code, outcome.out) == (2, "")
    assert "'hfds/somebody/photos' is a data set by name; dropkey check reads folders and tables" in outcome.err
