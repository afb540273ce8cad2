from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread

from dropkey_cli.commands.pictures import draw_masks
from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import dropkey_mask
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey


def plan(name: str = "test_vit", **settings: Any) -> DropKeyPlan:  # noqa: ANN401 - any setting
    with torch.device("meta"):
        model = timm.create_model(name)
    return apply_dropkey(model, DropKeySettings(**{"schedule": "constant", **settings}))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The pictures that are drawn, as the arrays handed to matplotlib."""
    pictures: list[np.ndarray] = []
    imshow = Axes.imshow

    def noting(axis: Axes, picture: np.ndarray, **options: Any) -> Any:  # noqa: ANN401
        pictures.append(picture)
        return imshow(axis, picture, **options)

    monkeypatch.setattr(Axes, "imshow", noting)
    return pictures


@pytest.mark.parametrize("structure", ["element", "key", "block", "cross"])
def test_pictures_are_the_masks_of_the_structure(structure: Any, drawn: list[np.ndarray], tmp_path: Path) -> None:  # noqa: ANN401
    model = plan(structure=structure)  # 10 × 10 patches and a class token, 6 layers
    assert draw_masks(model, tmp_path / "masks.png", seed=4) == ["blocks.0.attn", "blocks.3.attn", "blocks.5.attn"]
    mask = dropkey_mask(4, (1, 1, 101, 101), 0.3, structure, model.layers[0].layout)[0, 0].numpy()
    assert len(drawn) == 3 * (1 + 4)
    assert np.array_equal(drawn[0], mask)
    assert all(np.array_equal(drawn[1 + query], mask[query, 1:].reshape(10, 10)) for query in range(4))
    assert imread(tmp_path / "masks.png").ndim == 3


def test_layers_without_a_grid_or_with_one_query_have_fewer_pictures(drawn: list[np.ndarray], tmp_path: Path) -> None:
    draw_masks(plan("hiera_tiny_224"), tmp_path / "hiera.png")
    assert [picture.shape for picture in drawn] == [(64, 64), (196, 196), (49, 49)]
    drawn.clear()
    draw_masks(plan("volo_d1_224", include=["*.ClassAttention"], exclude=["network.*"]), tmp_path / "volo.png")
    assert [picture.shape for picture in drawn] == [(1, 197), (14, 14)] * 2


def test_layers_that_drop_nothing_are_not_drawn(tmp_path: Path) -> None:
    assert draw_masks(plan(schedule=[0.0, 0.2, 0.0, 0.0, 0.1, 0.0]), tmp_path / "a.png") == ["blocks.1.attn", "blocks.4.attn"]
    with pytest.raises(InputError, match="all layers have ratio 0"):
        draw_masks(plan(ratio=0.0), tmp_path / "b.png")


@pytest.mark.parametrize("name", ["", "masks"])
def test_file_without_an_ending_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name or '.'}' has no ending that tells the format"):
        draw_masks(plan(), Path(name))


@pytest.mark.parametrize("name", ["nowhere/masks.png", "masks.docx"])
def test_file_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name}' cannot be written .*give a picture file, e.g. masks.png"):
        draw_masks(plan(), tmp_path / name)
