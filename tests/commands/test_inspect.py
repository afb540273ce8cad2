import re
from pathlib import Path

import pytest

from dropkey_cli.cli import main
from dropkey_cli.commands.inspect import inspect
from dropkey_cli.errors import InputError


def test_table_of_a_models_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "vit_tiny_patch16_224"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DropKey in 12 attention layers: ratio 0.3 first, 0 last, 0.15 mean (decreasing, element)")
    layers = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "blocks." in line]
    assert [layer[0] for layer in layers] == [f"blocks.{block}.attn" for block in range(12)]
    # 14 × 14 patches and the class token; the ratio of layer l is 0.3·(11 − l)/11
    assert [layer[3:] for layer in layers] == [["197 × 197", "3", f"{0.3 * (11 - block) / 11:.4g}"] for block in range(12)]


def test_options_change_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    inspect(
        [
            "vit_tiny_patch16_224",
            "--image_size",
            "32",
            "--model_args",
            "{depth: 2}",
            "--dropkey.ratio=0.1",
            "--dropkey.schedule=constant",
        ]
    )
    out = capsys.readouterr().out
    assert out.startswith("DropKey in 2 attention layers: ratio 0.1 first, 0.1 last, 0.1 mean (constant, element)")
    assert "5 × 5" in out


def test_what_is_left_alone_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    inspect(["vit_so400m_patch14_siglip_224", "--model_args", "{depth: 1, embed_dim: 64, num_heads: 2}"])
    assert "attn_pool" in capsys.readouterr().out


def test_other_channels_than_three(capsys: pytest.CaptureFixture[str]) -> None:
    inspect(["test_vit", "--model_args", "{in_chans: 1}"])
    assert "DropKey in 6 attention layers" in capsys.readouterr().out


def test_masks_are_drawn_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "masks.png"
    inspect(["test_vit", "--dropkey.structure", "cross", "--masks", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    # The last of six layers has ratio 0
    assert f"masks of blocks.0.attn, blocks.2.attn, blocks.4.attn: {picture}" in capsys.readouterr().out


def test_a_large_model_needs_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    inspect(["vit_giant_patch14_224"])  # 1 billion parameters, 4 GB
    assert "DropKey in 40 attention layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: model"),
        (["vit_tny_patch16_224"], "'vit_tny_patch16_224' is not a model .*did you mean 'vit_tiny_patch16_224'"),
        (["resnet18"], "^ResNet has no attention layer that DropKey can act on"),
        (["vit_tiny_patch16_224", "--dropkey.ratoi", "1"], "unknown option --dropkey.ratoi; did you mean '--dropkey.ratio'"),
        (["vit_tiny_patch16_224", "--dropkey.ratio", "1"], r"ratio 1.0 is not a drop ratio"),
        (["vit_tiny_patch16_224", "--image_size", "0"], "img_size=0"),
        (["vit_tiny_patch16_224", "--image_size", "big"], "image_size 'big' is not valid: expected a whole number or null"),
        (["vit_tiny_patch16_224", "--model_args", "{dept: 2}"], "dept=2.*unexpected keyword argument 'dept'"),
        (["test_vit", "--model.dropkey.ratio", "0.1"], "inspect has no --model.dropkey.ratio: .* e.g. --dropkey.ratio 0.1"),
        (["test_vit", "--masks", "nowhere/masks.png"], "'nowhere/masks.png' cannot be written"),
        (["hiera_tiny_224", "--dropkey.structure", "block"], "structure 'block' needs keys on a grid"),
        (["vit_tiny_patch16_224", "more"], "unexpected 'more'"),
    ],
)
def test_wrong_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        inspect(words)
    assert re.search(message, str(error.value))
