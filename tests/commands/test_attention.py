import csv
import shutil
from pathlib import Path

import pytest
import torch

from dropkey_cli.report.attention_rows import AttentionRow, read_attention
from tests.commands import forks
from tests.commands.conftest import SHORT_FIT, Dropkey

IMAGES, TOKENS, LAYERS, HEADS = 359, 16, 6, 4  # of the quickstart's validation


def test_fit_measures_and_trains_as_ever(dropkey: Dropkey, trained: Path) -> None:
    assert dropkey(*SHORT_FIT, "--attention").code == 0
    run = Path("runs/quickstart/version_0")
    ours, others = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (run, trained / run)
    )
    assert ours.keys() == others.keys()
    assert all(torch.equal(ours[name], others[name]) for name in ours)
    rows = read_attention(run / "attention.csv")
    assert [(row.mode, row.rows, row.empty_rows) for row in rows] == [("inference", IMAGES * TOKENS, 0)] * LAYERS * HEADS
    with (run / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    training = [line for line in lines if line["train/attention_entropy"]]
    assert [int(line["step"]) for line in training] == [1, 3, 5, 7]
    validated = [float(line["val/attention_entropy"]) for line in lines if line["val/attention_entropy"]]
    assert validated[-1] == pytest.approx(sum(row.entropy for row in rows) / len(rows))
    first = [row.entropy for row in rows if row.layer == "blocks.0.attn"]
    assert float(training[-1]["train/attention_entropy/blocks.0.attn"]) < sum(first) / HEADS - 0.1  # ratio 0.3: sharper


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> str:
    """One that lies in no run, so that what is written lies in the working folder."""
    return str(shutil.copy(trained / "runs/quickstart/version_0/checkpoints/last.ckpt", tmp_path / "last.ckpt"))


def test_validation_is_the_same_without_dropkey_and_on_two_processes(dropkey: Dropkey, checkpoint: str, tmp_path: Path) -> None:
    words = ("validate", "--ckpt_path", checkpoint, "--attention", "--report=false")
    assert dropkey(*words).code == 0
    rows = read_attention(tmp_path / "report_validate/attention.csv")
    plain = dropkey(*words, "--model.dropkey", "null")
    assert plain.code == 0, plain.err
    assert read_attention(tmp_path / "report_validate/attention.csv") == rows
    assert forks.run_on(2, words, tmp_path) == [0, 0], forks.log(tmp_path)
    shared = read_attention(tmp_path / "report_validate/attention.csv")
    assert [_key(row) for row in shared] == [_key(row) for row in rows]  # 359 images are odd: one process has padding
    assert [row.entropy for row in shared] == pytest.approx([row.entropy for row in rows], rel=1e-6)
    assert [row.top_key for row in shared] == pytest.approx([row.top_key for row in rows], rel=1e-6)


def test_monte_carlo_is_another_pass(dropkey: Dropkey, checkpoint: str, tmp_path: Path) -> None:
    words = ("test", "--ckpt_path", checkpoint, "--attention", "--mc-samples", "2")
    assert dropkey(*words).code == 0
    rows = read_attention(tmp_path / "report_test/attention.csv")
    assert {row.mode for row in rows} == {"monte_carlo"}
    assert {row.rows + row.empty_rows for row in rows} == {2 * IMAGES * TOKENS}
    assert (tmp_path / "report_test/report.html").is_file()


def _key(row: AttentionRow) -> tuple[str, int, str, int, int]:
    return row.layer, row.head, row.mode, row.rows, row.empty_rows
