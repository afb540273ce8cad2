import pytest
import torch

from dropkey_cli.data.preprocessing import Preprocessing
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.tasks.description import check_same_network, describe

MINE = describe(
    model_name="vit_tiny_patch16_224",
    model_args={"depth": 2},
    class_names=["cat", "dog"],
    preprocessing=Preprocessing(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.9),
    dropkey=DropKeySettings(ratio=0.2),
)
WEIGHTS = {"head.weight": torch.zeros(2, 4), "head.bias": torch.zeros(2)}


def test_description_is_plain_data_that_a_safe_load_takes() -> None:
    assert MINE["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert MINE["model"] == {"name": "vit_tiny_patch16_224", "args": {"depth": 2}, "image_size": 32}
    assert MINE["dropkey"]["ratio"] == 0.2


def test_the_same_network_is_taken() -> None:
    check_same_network({"dropkey": MINE, "state_dict": WEIGHTS}, MINE, WEIGHTS)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({"state_dict": WEIGHTS}, "was not written by dropkey"),
        ({"dropkey": {**MINE, "class_names": ["cat"]}, "state_dict": WEIGHTS}, r"class_names \['cat'\]"),
        ({"dropkey": MINE, "state_dict": {**WEIGHTS, "head.bias": torch.zeros(3)}}, "1 of its tensors .* 'head.bias'"),
        ({"dropkey": MINE, "state_dict": {**WEIGHTS, "more": torch.zeros(1)}}, "such as 'more'"),
    ],
)
def test_another_network_is_refused_with_what_differs(checkpoint: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_same_network(checkpoint, MINE, WEIGHTS)
