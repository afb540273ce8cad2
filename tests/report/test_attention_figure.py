from pathlib import Path

import torch

from dropkey_cli.report.attention_figure import attention_figure, draw_attention
from dropkey_cli.report.attention_rows import AttentionRow, write_attention


def table(offset: float) -> list[AttentionRow]:
    return [
        AttentionRow(f"blocks.{layer}", head, "inference", offset + layer + head, 0.5, 0.1 * layer + 0.02 * head, rows=9)
        for layer in range(3)
        for head in range(2)
    ]


def test_networks_are_compared_by_layer_and_head() -> None:
    figure = attention_figure({"none": table(0.0), "DropKey": table(1.0)})
    entropy, top = figure.axes
    lines = [torch.as_tensor(line.get_ydata()).tolist() for line in entropy.lines]
    assert lines == [[0.5, 1.5, 2.5], [0, 1, 1, 2, 2, 3], [1.5, 2.5, 3.5], [1, 2, 2, 3, 3, 4]]  # means, heads
    assert torch.allclose(torch.as_tensor(top.lines[0].get_ydata()), torch.tensor([0.01, 0.11, 0.21], dtype=torch.float64))
    legend = entropy.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["none", "DropKey"]
    assert entropy.get_title("left") == "entropy of attention (inference)"


def test_a_file_is_drawn(tmp_path: Path) -> None:
    write_attention(tmp_path / "attention.csv", table(0.0))
    draw_attention(tmp_path / "attention.csv", tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
