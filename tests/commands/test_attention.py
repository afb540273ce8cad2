import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dropkey_cli.data.digits import Digits
from dropkey_cli.report.attention_rows import AttentionRow, read_attention
from tests.commands import forks
from tests.commands.conftest import QUICKSTART, SHORT_FIT, Dropkey

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


def sharp(checkpoint: str) -> dict[str, Tensor]:
    """Make the checkpoint's attention far from flat, as that of a longer training is; its weights by timm's names."""
    content = torch.load(checkpoint, weights_only=True)
    for name, value in content["state_dict"].items():
        if name.endswith("attn.qkv.weight"):
            value[: 2 * len(value) // 3] *= 4.0  # of queries and keys
    torch.save(content, checkpoint)
    return {name.removeprefix("network."): value.double() for name, value in content["state_dict"].items()}


def weights_by_hand(state: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Softmax of q·k in float64, (B, H, N, S) of each layer, from what the layers of timm's network project."""
    sizes: dict[str, Any] = {
        "patch_size": 4,
        "embed_dim": 64,
        "depth": LAYERS,
        "num_heads": HEADS,
        "class_token": False,
        "global_pool": "avg",
    }
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, num_classes=10, **sizes).double().eval()
    model.load_state_dict(state)
    found: dict[str, Tensor] = {}

    def attend(name: str, projected: Tensor) -> None:
        q, k, _ = projected.reshape(*projected.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        found[name] = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)

    for name, module in model.named_modules():
        if name.endswith(".qkv"):
            assert isinstance(module, nn.Linear)
            module.register_forward_hook(lambda _, __, output, name=name: attend(name.removesuffix(".qkv"), output))
    with torch.no_grad():
        model(images)
    return found


def test_all_test_images_attend_as_counted_by_hand(dropkey: Dropkey, checkpoint: str, tmp_path: Path) -> None:
    state = sharp(checkpoint)
    outcome = dropkey("test", "--ckpt_path", checkpoint, "--attention", "--report=false")
    assert outcome.code == 0, outcome.err
    assert [file.name for file in (tmp_path / "report_test").iterdir()] == ["attention.csv"]  # no report, no picture
    rows = {(row.layer, row.head): row for row in read_attention(tmp_path / "report_test/attention.csv")}
    assert len(rows) == LAYERS * HEADS
    data = Digits(image_size=16)
    data.setup("test")
    images = torch.stack([data.splits["test"][place]["image"] for place in range(IMAGES)])
    for layer, weights in weights_by_hand(state, data.preprocessing.normalize(images).double()).items():
        entropy, top = -(weights * weights.log()).sum(-1).mean((0, 2)), weights.amax(-1).mean((0, 2))
        for head in range(HEADS):
            row = rows[layer, head]
            assert (row.mode, row.rows, row.empty_rows) == ("inference", IMAGES * TOKENS, 0)
            assert (row.entropy, row.top_key) == pytest.approx((float(entropy[head]), float(top[head])), rel=1e-5)
            assert row.normalized_entropy == pytest.approx(float(entropy[head]) / math.log(TOKENS), rel=1e-5)
    assert min(row.normalized_entropy for row in rows.values()) < 0.95


def test_a_network_without_attention_is_refused(refused: Callable[..., str]) -> None:
    network = ("--model.model_name=test_resnet", "--model.model_args=null", "--model.dropkey=null")
    assert refused("fit", "--config", QUICKSTART, *network, "--attention") == (
        "--attention: ResNet has no attention over keys; leave it out"
    )


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
