import logging
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dropkey_cli.errors import InputError
from dropkey_cli.models.factory import create_model
from dropkey_cli.models.loading import taken_line

ORIGINAL = nn.Module.load_state_dict


def state(name: str = "test_vit", **arguments: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    torch.manual_seed(7)
    weights: dict[str, torch.Tensor] = timm.create_model(name, **arguments).state_dict()
    return weights


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state().items()}


def load(file: Path, num_classes: int = 3, **model_args: Any) -> nn.Module:  # noqa: ANN401
    args = {"pretrained_cfg_overlay": {"file": str(file)}, **model_args}
    return create_model("test_vit", num_classes=num_classes, image_size=160, pretrained=True, model_args=args)


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        (lambda: state("test_resnet"), "'conv1.0.weight'; name the network that they are of"),
        (lambda: prefixed("network."), "'network.cls_token'; make a model of it with dropkey export"),
        (lambda: prefixed("backbone."), "'backbone.cls_token'; name the network"),
        (lambda: {key: value for key, value in state().items() if "blocks.3" not in key}, "'blocks.3.norm1.weight'; name"),
        (lambda: {"cls_token": state()["cls_token"]}, "'pos_embed'; name the network"),
    ],
)
def test_weights_of_another_network_never_leave_it_random(weights: Any, found: str, tmp_path: Path) -> None:  # noqa: ANN401
    torch.save(weights(), tmp_path / "a.pth")
    for load_it in (load, lambda file: load(file, 1000)):  # other classes, and as many
        with pytest.raises(InputError, match=r"test_vit|those of another network") as refusal:
            load_it(tmp_path / "a.pth")
        assert "--model.pretrained false" in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match=f"of its 80 tensors are not in them, such as .*{found}"):
        load(tmp_path / "a.pth")


def test_only_the_classifier_may_start_anew(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pth")
    network = load(tmp_path / "a.pth")
    assert taken_line(network) == "78 of 80 tensors are taken; head.weight, head.bias start anew"
    assert taken_line(load(tmp_path / "a.pth", 1000)) == "all 80 tensors are taken, the classifier's too"
    assert taken_line(nn.Linear(1, 1)) is None
    assert set(network.state_dict()) == set(state())  # no more in a checkpoint


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_compiled_and_distributed_networks_are_stripped(prefix: str, tmp_path: Path) -> None:
    torch.save({prefix + key: value for key, value in state().items()}, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state().items() if not key.startswith("head."))


@pytest.mark.parametrize(
    ("model_args", "line"),
    [
        ({"global_pool": "avg"}, "76 of 80 tensors are taken; fc_norm.weight, fc_norm.bias, head.weight, head.bias start anew"),
        ({"depth": 2}, "30 of 32 tensors are taken; head.weight, head.bias start anew; not used: blocks.2.norm1.weight, "),
        ({"depth": 8}, "78 of 104 tensors are taken; blocks.6.norm1.weight, "),
    ],
)
def test_a_network_that_was_changed_on_purpose_says_what_starts_anew(
    model_args: dict[str, Any], line: str, tmp_path: Path
) -> None:
    torch.save(state(), tmp_path / "a.pth")
    given = taken_line(load(tmp_path / "a.pth", **model_args))
    assert given is not None
    assert given.startswith(line)


def test_more_than_half_must_be_there(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"are not those of test_vit, which has depth of its own: 168 of its 248 tensors"):
        load(tmp_path / "a.pth", depth=20)


def test_timms_own_weights_may_lack_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "models--timm--test_vit.r160_in1k/snapshots/abc/model.safetensors"
    file.parent.mkdir(parents=True)
    (tmp_path / "models--timm--test_vit.r160_in1k/refs").mkdir()
    (tmp_path / "models--timm--test_vit.r160_in1k/refs/main").write_text("abc")
    save_file({key: value for key, value in state().items() if "blocks.3" not in key}, file)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    network = create_model("test_vit", num_classes=3, image_size=160, pretrained=True)
    assert str(taken_line(network)).startswith("66 of 80 tensors are taken; blocks.3.norm1.weight, ")


def test_timm_and_torch_are_left_as_they_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("timm.models._builder").level
    torch.save(state("test_resnet"), tmp_path / "a.pth")
    with pytest.raises(InputError):
        load(tmp_path / "a.pth")
    assert nn.Module.load_state_dict is ORIGINAL
    assert logging.getLogger("timm.models._builder").level == level
    assert caplog.text == ""  # timm would list every name
