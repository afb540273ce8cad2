from typing import Any

import pytest
import timm
import torch
from timm.layers.drop import DropPath
from torch import nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.tasks.network import checkpoint_gradients, create_network, freeze_weights

SIZE = 32


def network(name: str = "test_vit", *, size: int = SIZE, **options: Any) -> nn.Module:  # noqa: ANN401 - create_network's
    given = {"model_args": {}, "pretrained": False, "num_classes": 3, **options}
    return create_network(name, image_size=size, **given)


# Drop rates


def test_drop_path_grows_to_the_rate_of_the_last_block_as_timms() -> None:
    found = [m.drop_prob for m in network(drop_path=0.3, model_args={"depth": 4}).modules() if isinstance(m, DropPath)]
    theirs = timm.create_model("test_vit", drop_path_rate=0.3, depth=4)
    assert found == [m.drop_prob for m in theirs.modules() if isinstance(m, DropPath)]
    assert max(found) == pytest.approx(0.3)


def test_patch_drop_leaves_out_its_share_of_the_patches_in_training_only() -> None:
    model = network(patch_drop=0.25, model_args={"patch_size": 4})
    tokens: list[int] = []
    model.blocks[0].register_forward_hook(lambda _module, inputs, _output: tokens.append(inputs[0].shape[1]))  # type: ignore[index, union-attr]
    model.train()(torch.randn(2, 3, SIZE, SIZE))
    model.eval()(torch.randn(2, 3, SIZE, SIZE))
    assert tokens == [1 + 48, 1 + 64]


@pytest.mark.parametrize("name", ["hiera_tiny_224", "eva02_tiny_patch14_224", "naflexvit_base_patch16_gap"])
def test_every_kind_of_patch_dropout_is_known(name: str) -> None:
    with torch.device("meta"):
        network(name, size=224, patch_drop=0.25)


@pytest.mark.parametrize("rates", [{"drop_path": None, "patch_drop": None}, {"drop_path": 0.0, "patch_drop": 0.0}])
def test_without_rates_it_is_timms_network(rates: dict[str, Any]) -> None:
    torch.manual_seed(1)
    mine = network(**rates)
    torch.manual_seed(1)
    theirs = timm.create_model("test_vit", num_classes=3, img_size=SIZE)
    assert [(name, type(module)) for name, module in mine.named_modules()] == [
        (name, type(module)) for name, module in theirs.named_modules()
    ]
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value)


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("mobilevit_xxs", "patch_drop", "patch dropout"),  # its constructor refuses the argument
        ("swin_tiny_patch4_window7_224", "patch_drop", "patch dropout"),
    ],
)
def test_a_network_without_such_a_thing_is_named(name: str, option: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} has no {words}: leave out --model\.{option}, or give another"):
        network(name, size=224, **{option: 0.1})


def test_one_block_alone_has_no_drop_path() -> None:
    with pytest.raises(InputError, match=r"^test_vit has no drop path"):  # timm's rate of the first block is 0
        network(drop_path=0.1, model_args={"depth": 1})


def test_a_rate_that_is_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"^model_args has drop_path_rate, and drop_path is given too: leave one of them out$"):
        network(drop_path=0.1, model_args={"drop_path_rate": 0.2})


def test_other_errors_stay_those_of_the_factory() -> None:
    with pytest.raises(InputError, match=r"^timm cannot build test_vit with .*nonsense=1"):
        network(drop_path=0.1, model_args={"nonsense": 1})


# Gradient checkpointing


@pytest.mark.parametrize("structure", ["element", "key"])
def test_checkpointing_gives_the_same_gradients_under_dropkey(structure: Any) -> None:  # noqa: ANN401 - a literal
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = network(drop_path=0.2)
        apply_dropkey(model, DropKeySettings(ratio=0.5, structure=structure), example_inputs=(torch.randn(2, 3, SIZE, SIZE),))
        if checkpointing:
            checkpoint_gradients(model, "test_vit")
        torch.manual_seed(2)
        model(torch.randn(4, 3, SIZE, SIZE)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert vars(model)["grad_checkpointing"]


def test_a_network_that_cannot_checkpoint_is_named() -> None:
    with pytest.raises(InputError, match=r"^linear has no gradient checkpointing: leave out --model\.grad_checkpointing$"):
        checkpoint_gradients(nn.Linear(1, 1), "linear")


# Freezing


def trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_nothing_is_frozen_unasked() -> None:
    model = network()
    freeze_weights(model, None)
    assert len(trained(model)) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_a_frozen_backbone_leaves_the_classifier(name: str) -> None:
    model = network(name)
    freeze_weights(model, "backbone")
    heads = ["head.weight", "head.bias"]
    assert trained(model) == (heads if name == "test_vit" else [*heads, "head_dist.weight", "head_dist.bias"])


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (["patch_embed"], {"patch_embed.proj.weight", "patch_embed.proj.bias"}),
        (["*.norm1.bias", "cls_token"], {"blocks.0.norm1.bias", "blocks.1.norm1.bias", "cls_token"}),
        (["blocks.[0-1].norm1"], {f"blocks.{block}.norm1.{name}" for block in (0, 1) for name in ("weight", "bias")}),
    ],
)
def test_patterns_freeze_weights_and_whole_modules(patterns: list[str], frozen: set[str]) -> None:
    model = network(model_args={"depth": 2})
    freeze_weights(model, patterns)
    assert {name for name, _ in model.named_parameters()} - set(trained(model)) == frozen


def test_batch_norms_of_frozen_layers_keep_their_statistics() -> None:
    model = network("levit_128s", size=224)
    freeze_weights(model, ["stem"])
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)}
    assert {name for name, module in norms.items() if not module.training} == {
        name for name in norms if name.startswith("stem.")
    }


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["block.0"], r"^freeze has 'block\.0', which no weight's name matches; .*did you mean 'blocks\.0'"),
        (["*"], r"^freeze \['\*'\] leaves no weights to train"),
    ],
)
def test_patterns_that_freeze_nothing_or_all_are_refused(patterns: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        freeze_weights(network(), patterns)
