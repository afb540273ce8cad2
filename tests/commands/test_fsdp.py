from contextlib import nullcontext
from typing import Any, cast

import pytest
import timm
import torch
from torch import nn

from dropkey_cli.commands import fsdp
from dropkey_cli.commands.fsdp import FullySharded, shard, shard_units
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.models.factory import create_model
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.tasks.optimization import create_optimizer


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("vit_tiny_patch16_224", [f"blocks.{block}" for block in range(12)]),
        (
            "swin_tiny_patch4_window7_224",
            [f"layers.{s}.blocks.{b}" for s, depth in enumerate((2, 2, 6, 2)) for b in range(depth)],
        ),
        ("cait_xxs24_224", [*(f"blocks.{block}" for block in range(24)), "blocks_token_only.0", "blocks_token_only.1"]),
        ("maxvit_tiny_tf_224", None),
        ("t2t_vit_7", None),
        ("resnet18", []),
    ],
)
@pytest.mark.parametrize("patched", [True, False])
def test_blocks_are_found_without_configuration(name: str, units: list[str] | None, patched: bool) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=10, image_size=224, pretrained=False)
    if patched and units != []:
        apply_dropkey(model, DropKeySettings(), example_inputs=(torch.empty(2, 3, 224, 224, device="meta"),))
    found = shard_units(model)
    if units is not None:
        assert found == units
    else:  # nothing large is left for the root
        inside = sum(parameter.numel() for unit in found for parameter in model.get_submodule(unit).parameters())
        assert inside > 0.5 * sum(parameter.numel() for parameter in model.parameters())
    assert not any(one.startswith(f"{other}.") for one in found for other in found)


def test_torchs_own_attention_is_found() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 3, enable_nested_tensor=False)
    assert shard_units(encoder) == ["layers.0", "layers.1", "layers.2"]
    assert timm.__version__


def test_blocks_within_blocks_are_sharded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model: Any = create_model("levit_128s", num_classes=10, image_size=224, pretrained=False)  # attends between stages, too
    sharded: list[nn.Module] = []
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, mesh: sharded.append(module))
    shard(model, None)
    names = {module: name for name, module in model.named_modules()}
    order = [names[module] for module in sharded]
    assert order[-1] == ""
    assert order.index("stages.1.blocks.0") < order.index("stages.1")


def test_an_optimizer_with_lookahead_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch finds no state in it, and would make a step for one at every checkpoint: 44 in the place of 30."""
    strategy, no_trainer = FullySharded(), cast(Any, None)
    monkeypatch.setattr("dropkey_cli.commands.fsdp.ModelParallelStrategy.setup_optimizers", lambda strategy, trainer: None)
    for name, refused in (("adamw", False), ("lookahead_adamw", True)):
        strategy.optimizers = [create_optimizer(nn.Linear(2, 2), name, lr=0.1, weight_decay=0.0, layer_decay=1.0)]
        with pytest.raises(InputError, match="leave lookahead_ out") if refused else nullcontext():
            strategy.setup_optimizers(no_trainer)
