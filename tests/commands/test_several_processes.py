"""Metrics, predictions, masks and checkpoints on 1, 2 and 4 processes."""

import csv
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.commands.forks import QUICKSTART, RUN, log, run, run_fresh_on, run_on, signal_itself

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # Python 3.12 on: this process has threads
]
OVERLAYS = Path(QUICKSTART).parent / "overlays"
FIT = (
    "fit", "--config", QUICKSTART, "--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--data.batch_size=8",
    "--trainer.log_every_n_steps=1", "--report=false",
)  # fmt: skip


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(folder: Path) -> dict[str, float]:
    """The metrics that were printed last."""
    cells = [[cell.strip() for cell in line.split("│")] for line in log(folder).splitlines() if line.count("│") == 3]
    return {row[1]: float(row[2]) for row in cells}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two processes, and eleven images."""
    folder = tmp_path_factory.mktemp("two")
    words = [*FIT, "--config", str(OVERLAYS / "ddp.yaml"), "--logger=tensorboard"]
    assert run_on(2, words, folder) == [0, 0], log(folder)
    (folder / "images").mkdir()
    for number in range(11):
        Image.effect_noise((20, 24), 90 + number).save(folder / "images" / f"{number:02}.png")
    (folder / "images" / "05.png").write_bytes(b"broken")
    return folder


def test_processes_make_one_run_and_count_together(trained: Path) -> None:
    assert [str(path.relative_to(trained)) for path in trained.glob("runs/*/*")] == [str(RUN)]
    rows = [row for row in read_csv(trained / RUN / "metrics.csv") if row["drop_ratio/mean"]]
    assert len(rows) == 6
    draws = 8 * 4 * 16 * 16  # per process and step: images, heads, queries, keys
    counted = [float(row[f"drop_ratio/blocks.{block}.attn"]) * 2 * draws for row in rows for block in range(5)]
    assert all(count == pytest.approx(round(count), abs=1e-6) for count in counted)
    assert any(round(count) % 2 for count in counted)  # not one process's share, nor the same in both
    logged = read_csv(trained / RUN / "drop_ratio.csv")
    assert [int(row["step"]) for row in logged] == [step for step in range(6) for _ in range(6)]
    dropping = [row for row in logged if row["layer"] != "blocks.5.attn"]
    assert {row["draws"] for row in dropping} == {str(2 * draws)}
    assert [int(row["dropped"]) for row in dropping] == [round(count) for count in counted]


def test_processes_finish_without_dropkey_together(tmp_path: Path) -> None:
    words = [*FIT, "--config", str(OVERLAYS / "ddp.yaml"), "--finish_without_dropkey=0.5", "--trainer.limit_val_batches=0"]
    assert run_on(2, words, tmp_path) == [0, 0], log(tmp_path)
    rows = read_csv(tmp_path / RUN / "drop_ratio.csv")
    draws = [sum(int(row["draws"]) for row in rows if row["step"] == str(step)) for step in range(6)]
    assert draws == [2 * 5 * 8 * 4 * 16 * 16] * 3 + [0] * 3  # processes, layers, images, heads, queries, keys
    begins = "step 3: from here on without DropKey (--finish_without_dropkey)\n"
    assert [log(tmp_path, rank).count(begins) for rank in (0, 1)] == [1, 0]


def test_the_first_process_speaks_for_all(trained: Path) -> None:
    said = log(trained)
    written = (trained / RUN / "run.log").read_text(encoding="utf-8")
    for text in (said, written):
        assert "6 optimizer steps of 16 images (8 × 2 devices)" in text
        assert [text.count(f"epoch {epoch}/2  step {3 * epoch}/6") for epoch in (1, 2)] == [1, 1]
        assert text.count("next: dropkey predict") == 1
    assert "images/s" in said
    assert "epoch 1/2" not in log(trained, 1)
    assert [str(path.relative_to(trained)) for path in trained.rglob("tensorboard")] == [f"{RUN}/tensorboard"]


def test_validation_in_training_is_that_of_one_process(trained: Path) -> None:
    rows = [row for row in read_csv(trained / RUN / "metrics.csv") if row["val/acc1"]]
    assert run(["validate", "--ckpt_path=last"], trained) == 0
    assert {name: float(rows[-1][name]) for name in table(trained)} == pytest.approx(table(trained), rel=1e-6)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_metrics_are_those_of_one_process(count: int, strategy: str, trained: Path) -> None:
    # 359 images: no multiple of the processes, nor of the batches
    words = ["test", "--ckpt_path=last", "--data.batch_size=7"]
    assert run(words, trained) == 0
    alone = table(trained)
    assert run_on(count, [*words, f"--trainer.strategy={strategy}"], trained) == [0] * count, log(trained)
    together = table(trained)
    loss, loss_alone = together.pop("test/loss"), alone.pop("test/loss")
    assert together == alone  # counts are exact
    assert loss == pytest.approx(loss_alone, rel=1e-6)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("images", [11, 1])
def test_predictions_are_those_of_one_process(count: int, images: int, trained: Path) -> None:
    words = ["predict", "--ckpt_path=last", "--data.batch_size=2", "--data.root", "images" if images > 1 else "images/03.png"]
    assert run([*words, "--output=one.csv"], trained) == 0
    assert run_on(count, [*words, "--output=many.csv"], trained) == [0] * count, log(trained)
    one, many = (read_csv(trained / name) for name in ("one.csv", "many.csv"))
    assert len(one) == images
    assert [row["path"] for row in many] == [row["path"] for row in one]
    for row, other in zip(one, many, strict=True):
        assert (row["prediction"], row["error"]) == (other["prediction"], other["error"])
        assert float(row["probability"] or 0) == pytest.approx(float(other["probability"] or 0), abs=2e-6)
    assert not list(trained.glob("*.part"))
    for name in ("one.csv", "many.csv"):
        (trained / name).unlink()


def test_predictions_by_monte_carlo_of_a_list_on_standard_input_are_those_of_one_process(trained: Path) -> None:
    names = ["images/03.png", "images/05.png", "gone.png", "images/01.png", "images/03.png"]

    def list_images() -> None:
        text = io.BytesIO("\0".join(names).encode())
        sys.stdin = io.TextIOWrapper(text if os.environ.get("LOCAL_RANK", "0") == "0" else io.BytesIO())

    words = ["predict", "--ckpt_path=last", "--data.batch_size=2", "--data.root", "-", "--mc-samples=3", "--features"]
    assert run([*words, "--output=one.csv"], trained, prepare=list_images) == 0, log(trained)
    assert run_on(2, [*words, "--output=two.csv"], trained, prepare=list_images) == [0, 0], log(trained)
    one, two = (read_csv(trained / name) for name in ("one.csv", "two.csv"))
    assert [row["path"] for row in one] == [row["path"] for row in two] == names
    assert [bool(row["error"]) for row in two] == [False, True, True, False, False]
    assert one[0]["probability"] != one[4]["probability"]  # the same image at two places: other masks
    for row, other in zip(one, two, strict=True):
        assert (row["prediction"], row["error"]) == (other["prediction"], other["error"])
        for column in ("probability", "std", "top2_std", "feature_0", "feature_63"):
            assert float(row[column] or 0) == pytest.approx(float(other[column] or 0), rel=1e-3, abs=2e-6)
    for name in ("one.csv", "two.csv"):
        (trained / name).unlink()


def test_a_killed_process_leaves_no_half_written_predictions(trained: Path) -> None:
    def die_midway() -> None:
        from dropkey_cli.callbacks.predictions import PredictionWriter

        original = PredictionWriter.on_predict_batch_end

        def dying(self: PredictionWriter, *arguments: Any) -> None:  # noqa: ANN401 - the hook's
            if os.environ["LOCAL_RANK"] == "1" and arguments[4] == 2:  # batch_idx
                os.kill(os.getpid(), 9)
            original(self, *arguments)

        PredictionWriter.on_predict_batch_end = dying  # type: ignore[assignment, method-assign]  # in a process of its own

    words = ["predict", "--ckpt_path=last", "--data.batch_size=2", "--data.root=images", "--output=lost.csv"]
    codes = run_on(2, words, trained, prepare=die_midway)
    assert codes[1] == -9
    assert codes[0] > 0
    assert not list(trained.glob("lost*"))


def test_masks_differ_between_processes_and_repeat_with_the_seed(tmp_path: Path) -> None:
    def note_seeds() -> None:
        from dropkey_cli.callbacks.batch_seeds import BatchSeeds

        original = BatchSeeds.on_train_batch_start

        def noting(self: BatchSeeds, *arguments: Any) -> None:  # noqa: ANN401 - the hook's
            original(self, *arguments)
            print("seed", torch.initial_seed())

        BatchSeeds.on_train_batch_start = noting  # type: ignore[assignment, method-assign]  # in a process of its own

    seeds, rows = [], []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        words = [*FIT, "--trainer.strategy=ddp", "--trainer.limit_val_batches=1"]
        assert run_on(2, words, tmp_path / name, prepare=note_seeds) == [0, 0]
        lines = [line for rank in range(2) for line in log(tmp_path / name, rank).splitlines() if line.startswith("seed")]
        seeds.append(lines)
        rows.append(read_csv(tmp_path / name / RUN / "metrics.csv"))
    assert len(set(seeds[0])) == 12  # every batch of every process
    assert seeds[0] == seeds[1]
    assert rows[0] == rows[1]


@pytest.mark.slow  # once in some fifty launches, gloo's own memory broke under FSDP2 on a CPU
def test_a_sharded_run_makes_ordinary_checkpoints_and_goes_on(tmp_path: Path) -> None:
    words = [*FIT, "--config", str(OVERLAYS / "fsdp.yaml"), "--trainer.gradient_clip_val=1", "--trainer.limit_val_batches=3"]
    assert run_fresh_on(2, words, tmp_path) == [0, 0], log(tmp_path)
    saved = torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)
    assert {type(value) for value in saved["state_dict"].values()} == {torch.Tensor}
    assert saved["state_dict"]["network.blocks.0.attn.qkv.weight"].shape == (192, 64)
    rows = [row for row in read_csv(tmp_path / RUN / "metrics.csv") if row["val/acc1"]]
    assert run(["validate", "--ckpt_path=last", "--trainer.limit_val_batches=6"], tmp_path) == 0, log(tmp_path)
    assert {name: float(rows[-1][name]) for name in table(tmp_path)} == pytest.approx(table(tmp_path), rel=1e-6)
    assert run_fresh_on(2, ["fit", "--resume=last", "--trainer.max_epochs=3"], tmp_path) == [0, 0], log(tmp_path)
    assert [row["epoch"] for row in read_csv(tmp_path / RUN / "metrics.csv") if row["val/acc1"]] == ["0", "1", "2"]


def test_unreadable_images_are_counted_over_all_processes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            Image.effect_noise((20, 24), 90 + number).save(tmp_path / "photos" / name / f"{number}.png")
            if number > 2:
                (tmp_path / "photos" / name / f"{number}.png").write_bytes(b"no image")
    words = ["fit", "--model.model_name=test_vit", "--model.pretrained=false", "--data.image_size=32", "--data.num_workers=0",
             "--data.root=photos", "--data.on_error=skip", "--data.batch_size=4"]  # fmt: skip
    assert run_on(2, words, tmp_path) == [1, 1], log(tmp_path)
    told = [log(tmp_path, rank).rpartition("error: ")[2] for rank in range(2)]
    assert told == ["14 of 20 images could not be read: dropkey check FOLDER says why; mend that\n"] * 2


@pytest.mark.slow
def test_a_sharded_run_that_is_saved_before_its_first_step_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def save_at_once() -> None:
        from dropkey_cli.callbacks.checkpoints import LastCheckpoint

        original = LastCheckpoint.on_train_start

        def saving(self: LastCheckpoint, trainer: Any, module: Any) -> None:  # noqa: ANN401 - the hook's
            original(self, trainer, module)
            self._save(trainer)

        LastCheckpoint.on_train_start = saving  # type: ignore[assignment, method-assign]  # in a process of its own

    words = [
        *FIT,
        "--trainer.strategy=fsdp2",
        "--trainer.max_epochs=1",
        "--trainer.limit_val_batches=1",
        "--checkpoint_minutes=0",
    ]
    ends = []
    for name, options in (("whole", {}), ("saved", {"prepare": save_at_once})):
        (tmp_path / name).mkdir()
        assert run_on(2, words, tmp_path / name, **options) == [0, 0], log(tmp_path / name)
        ends.append(torch.load(tmp_path / name / RUN / "checkpoints/last.ckpt", weights_only=True))
    whole, saved = (end["optimizer_states"][0]["state"][0] for end in ends)
    assert saved["step"] == whole["step"] == 3
    assert torch.equal(saved["exp_avg"], whole["exp_avg"])


def test_three_processes_stop_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    # Two sum gradients alike in any order; three do not
    words = [*FIT, "--trainer.strategy=ddp", "--trainer.max_epochs=1", "--trainer.limit_val_batches=1"]
    ends = []
    for name, options in (("whole", {}), ("parts", {"prepare": signal_itself(signal.SIGTERM, batch=2)})):
        (tmp_path / name).mkdir()
        codes = run_on(3, words, tmp_path / name, **options)
        if options:
            assert codes == [143, 0, 0], log(tmp_path / name)
            codes = run_on(3, ["fit", "--resume", str(RUN)], tmp_path / name)
        assert codes == [0, 0, 0], log(tmp_path / name)
        ends.append(torch.load(tmp_path / name / RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())


def test_a_killed_process_ends_the_training_of_the_others_in_one_line(tmp_path: Path) -> None:
    def die_midway() -> None:
        if os.environ["LOCAL_RANK"] == "1":
            signal_itself(signal.SIGKILL, batch=3)()

    assert run_on(2, [*FIT, "--trainer.strategy=ddp"], tmp_path, prepare=die_midway) == [1, -9]
    assert log(tmp_path).splitlines()[-1].startswith("dropkey: error: another process of this run has ended: ")
    assert "Traceback" not in log(tmp_path)


def test_a_wrong_output_ends_all_processes(trained: Path) -> None:
    codes = run_on(2, ["predict", "--ckpt_path=last", "--data.root=images", "--output=images"], trained)
    assert codes[0] == 2
    assert "--output 'images' is a folder" in log(trained)
    assert "checkpoint  runs/" in log(trained)
    assert "checkpoint  runs/" not in log(trained, 1)  # the first process says it for all


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["-m", "dropkey_cli"], ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "dropkey_cli"]]
)
def test_real_launchers(launcher: list[str], tmp_path: Path) -> None:
    words = [sys.executable, *launcher, *FIT, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("runs/*/*")] == [str(RUN)]
    assert len(read_csv(tmp_path / RUN / "metrics.csv")) > 6


@pytest.mark.slow
def test_two_nodes_make_one_run(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [*FIT, "--config", str(OVERLAYS / "multi_node.yaml"), "--trainer.devices=1", "--trainer.accelerator=cpu"]
    place = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    launch = [sys.executable, "-m", "torch.distributed.run", *place]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen([*launch, f"--node_rank={rank}", "-m", "dropkey_cli", *words], cwd=tmp_path, env=environment)
        for rank in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("runs/*/*")] == [str(RUN)]
