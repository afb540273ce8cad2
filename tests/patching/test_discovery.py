import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.patching.discovery import AttentionCall, Function, image_inputs, meta_copy, record_attention, softmax_arguments

TOKENS = (torch.zeros(2, 5, 8),)


class Attention(nn.Module):
    """Single-head attention over (B, N, 8) that calls ``how``."""

    def __init__(self, how: str = "sdpa") -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.softmax = nn.Softmax(dim=-1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.chunk(self.qkv(x)[:, None], 3, -1)  # (B, 1, N, 8)
        if self.how == "sdpa":
            output = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "sdpa by name":
            output = F.scaled_dot_product_attention(query=q, key=k, value=v)
        else:
            output = self.weights(q @ k.mT) @ v
        return output.squeeze(1)

    def weights(self, logits: Tensor) -> Tensor:
        calls: dict[str, Callable[[], Tensor]] = {
            "Tensor.softmax": lambda: logits.softmax(-1),
            "Tensor.softmax by name": lambda: logits.softmax(dim=-1),
            "torch.softmax": lambda: torch.softmax(logits, -1),
            "torch.softmax by name": lambda: torch.softmax(input=logits, dim=3),
            "torch.special.softmax": lambda: torch.special.softmax(logits, -1),
            "F.softmax": lambda: F.softmax(logits, dim=-1),
            "nn.Softmax": lambda: self.softmax(logits),
        }
        return calls[self.how]()


SOFTMAXES = [
    "Tensor.softmax",
    "Tensor.softmax by name",
    "torch.softmax",
    "torch.softmax by name",
    "torch.special.softmax",
    "F.softmax",
    "nn.Softmax",
]


class Backwards(nn.Module):
    """Runs its layers in the reverse order of their registration, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Attention(), Attention(), Attention()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.a(self.b(self.c(x))))
        return out


@pytest.mark.parametrize("how", [*SOFTMAXES, "sdpa", "sdpa by name"])
def test_every_way_to_attend_is_recorded_with_its_module(how: str) -> None:
    calls = record_attention(nn.Sequential(nn.Identity(), Attention(how)), TOKENS)
    function: Function = "sdpa" if how.startswith("sdpa") else "softmax"
    assert calls == [AttentionCall("1", Attention, function, (2, 1, 5, 5), -1)]
    assert calls[0].over_keys


def test_calls_are_in_order_of_execution() -> None:
    assert [call.layer for call in record_attention(Backwards(), TOKENS)] == ["c", "b", "a", "c"]


def test_module_with_two_names_has_the_first() -> None:
    shared = Attention()
    assert [call.layer for call in record_attention(nn.Sequential(shared, shared), TOKENS)] == ["0", "0"]


def test_call_of_the_model_itself_has_an_empty_name() -> None:
    assert [call.layer for call in record_attention(Attention(), TOKENS)] == [""]


@pytest.mark.parametrize(
    ("shape", "dim", "over_keys"),
    [((2, 3, 5, 5), -1, True), ((6, 5, 5), -1, True), ((2, 3, 5, 5), -2, False), ((5, 5), -1, False)],
)
def test_only_the_last_of_three_axes_can_be_keys(shape: tuple[int, ...], dim: int, over_keys: bool) -> None:
    assert AttentionCall("", Attention, "softmax", shape, dim).over_keys is over_keys


def test_torchs_multi_head_attention_is_recorded_with_its_logits() -> None:
    class Torchs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attention(x, x, x)[0]
            return out

    (call,) = record_attention(Torchs(), TOKENS)
    assert (call.layer, call.cls, call.function) == ("attention", nn.MultiheadAttention, "multi_head_attention_forward")
    assert (call.logits_shape, call.over_keys) == ((2, 2, 5, 5), True)


def test_cross_attention_has_its_queries_and_keys() -> None:
    class Cross(nn.Module):
        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, memory, memory)

    (call,) = record_attention(Cross(), (torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 11, 8)))
    assert call.logits_shape == (2, 3, 5, 11)


def test_softmax_arguments_count_the_axis_from_the_end() -> None:
    logits = torch.zeros(2, 3, 4)
    assert [softmax_arguments(logits, dim)[1] for dim in (-1, 2, 0, -3)] == [-1, -1, -3, -3]
    assert softmax_arguments(input=logits, dim=1, dtype=torch.float64)[0] is logits
    with pytest.raises(InputError, match="without its axis"):
        softmax_arguments(logits)


def test_discovery_leaves_the_model_untouched() -> None:
    model = timm.create_model("levit_128s", embed_dim=(32, 64, 96)).eval()
    model.get_submodule("head").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = [tensor._version for tensor in model.state_dict(keep_vars=True).values()]
    attributes = {name: {key: id(value) for key, value in vars(module).items()} for name, module in model.named_modules()}
    training = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert len(record_attention(model, image_inputs(model))) == 11
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [tensor._version for tensor in model.state_dict(keep_vars=True).values()] == versions
    assert [module.training for module in model.modules()] == training
    for name, module in model.named_modules():
        assert {key: id(value) for key, value in vars(module).items()} == attributes[name]
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch._C._len_torch_function_stack() == 0


def test_discovery_of_a_model_that_draws_numbers_leaves_the_generator_alone() -> None:
    class Drawing(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if torch.rand(()) < 2 else x

    model = Drawing()
    state = torch.get_rng_state()
    assert len(record_attention(model, TOKENS)) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_model_that_keeps_a_computed_tensor_is_discovered() -> None:
    model = timm.create_model("levit_128s", embed_dim=(32, 64, 96)).eval()
    model(torch.randn(2, 3, 224, 224))  # in eval LeViT caches its biases, which have a gradient: deepcopy refuses such tensors
    assert len(record_attention(model, image_inputs(model))) == 11


def test_meta_copy_shares_no_memory_and_keeps_ties() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    ghost = meta_copy(model)
    assert {tensor.device.type for tensor in ghost.state_dict().values()} == {"meta"}
    assert ghost.get_parameter("0.weight") is ghost.get_parameter("1.weight")
    assert not ghost.get_parameter("0.bias").requires_grad
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_model_on_the_meta_device_is_discovered() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    assert len(record_attention(model, image_inputs(model))) == 12


def test_inputs_that_do_not_fit_are_refused_with_their_shape_and_the_way_out() -> None:
    with pytest.raises(InputError, match=r"Attention could not be run once on inputs of shape \(2, 5, 7\).*example_inputs="):
        record_attention(Attention(), (torch.zeros(2, 5, 7),))
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("vit_tiny_patch16_224", {}, (2, 3, 224, 224)),
        ("vit_tiny_patch16_224", {"img_size": (32, 64), "in_chans": 1}, (2, 1, 32, 64)),
        ("levit_128s", {}, (2, 3, 224, 224)),
        ("test_maxvit", {}, (2, 3, 160, 160)),
        ("swinv2_tiny_window8_256", {"img_size": 128}, (2, 3, 128, 128)),
    ],
)
def test_images_have_the_models_own_size(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    (images,) = image_inputs(timm.create_model(name, **options))
    assert (tuple(images.shape), images.device.type) == (shape, "meta")


@pytest.mark.parametrize("name", ["levit_128s", "test_maxvit", "resnet18"])
def test_models_of_one_channel_are_discovered(name: str) -> None:
    model = timm.create_model(name, in_chans=1)
    record_attention(model, image_inputs(model))


def test_image_size_as_one_number_is_understood() -> None:
    model = nn.Module()
    model.patch_embed = nn.Identity()
    model.patch_embed.img_size = 32  # type: ignore[assignment]  # as in DINO's code
    assert image_inputs(model)[0].shape == (2, 3, 32, 32)


def test_model_that_names_no_image_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"Attention does not say which images it takes.*example_inputs="):
        image_inputs(Attention())


def test_copies_are_discovered_as_the_original() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    inputs = image_inputs(model)
    assert record_attention(copy.deepcopy(model), inputs) == record_attention(model, inputs)
