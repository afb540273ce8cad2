"""Where the keys lie, measured: a key's gradient with respect to the image is largest where its token lies."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching import interception
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.discovery import image_inputs

SLOW = pytest.mark.slow
# The smallest model of each kind of token order; what is slow repeats a kind in another class.
MODELS = [
    "test_vit",  # class token, patches
    "test_maxvit",  # windows and a dilated grid
    "tnt_s_legacy_patch16_224",  # pixels in a patch, and patches
    "pvt_v2_b0",  # pooled keys
    pytest.param("swin_s3_tiny_224", marks=SLOW),
    pytest.param("swinv2_tiny_window8_256", marks=SLOW),
    pytest.param("swinv2_cr_tiny_224", marks=SLOW),
    pytest.param("gcvit_xxtiny", marks=SLOW),
    pytest.param("halonet_h1", marks=SLOW),
    pytest.param("vit_pe_spatial_tiny_patch16_512", marks=SLOW),
    pytest.param("eva02_tiny_patch14_224", marks=SLOW),
    pytest.param("test_coatnet", marks=SLOW),
    pytest.param("test_vit_relpos", marks=SLOW),
    pytest.param("crossvit_tiny_240", marks=SLOW),
    pytest.param("volo_d1_224", marks=SLOW),
    pytest.param("cait_xxs24_224", marks=SLOW),
    pytest.param("cpubone_nano", marks=SLOW),
    pytest.param("fastvit_mci0", marks=SLOW),
    pytest.param("davit_tiny", marks=SLOW),
    pytest.param("mvitv2_tiny", marks=SLOW),
    pytest.param("mobilenetv4_hybrid_medium_075", marks=SLOW),
    pytest.param("beit_base_patch16_224", marks=SLOW),
    pytest.param("efficientvit_m0", marks=SLOW),
    pytest.param("lowformer_b0", marks=SLOW),
    pytest.param("nest_tiny", marks=SLOW),
    pytest.param("twins_svt_small", marks=SLOW),
    pytest.param("sam2_hiera_tiny", marks=SLOW),
    pytest.param("samvit_base_patch16_224", marks=SLOW),
    pytest.param("tiny_vit_5m_224", marks=SLOW),
    pytest.param("efficientformerv2_s0", marks=SLOW),
    pytest.param("caformer_s18", marks=SLOW),
    pytest.param("shvit_s1", marks=SLOW),
    pytest.param("vit_pwee_patch16_reg1_gap_256", marks=SLOW),
    pytest.param("vit_dwee_patch16_reg1_gap_256", marks=SLOW),
    pytest.param("convit_tiny", marks=SLOW),
    pytest.param("visformer_tiny", marks=SLOW),
    pytest.param("mobilevit_xxs", marks=SLOW),
]


class Recorder:
    """Stands in for DropKey's attention: drops nothing, keeps the keys (or their logits) of every layer's first call."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}  # by the layer's counts: (…, S, D)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, _: Tensor, mask: Tensor | None, **options: Any) -> Tensor:  # noqa: ANN401
        self.keys.setdefault(id(options["counts"]), k)
        output = F.scaled_dot_product_attention(q, k, v, mask, scale=options["scale"], enable_gqa=options["enable_gqa"])
        return 0.01 * output  # little mixing of places, so that the layers after it can be measured as well

    def softmax(self, logits: Tensor, _: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        self.keys.setdefault(id(options["counts"]), logits.sum(-2)[..., None])  # over the queries
        return 0.01 * logits.softmax(-1)


def measured_keys(model: nn.Module, plan: DropKeyPlan, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    recorder = Recorder()
    monkeypatch.setattr(interception, "dropkey_attention", recorder.attention)
    monkeypatch.setattr(interception, "dropkey_softmax", recorder.softmax)
    with plan.sampling():
        model(image)
    return [recorder.keys[id(state.counts)] for state in plan.states]


def centres(keys: Tensor, chosen: list[int], image: Tensor) -> Tensor:
    """Where in the image (row, column) each of the chosen keys looks, as seen by its gradient: (len(chosen), 2)."""
    keys = keys.flatten(0, -3)  # (window or head, S, D)
    scores = keys[min(27, len(keys) - 1)] @ torch.randn(keys.shape[-1])  # a window off the border, if there are many
    maps = torch.stack([torch.autograd.grad(scores[key], image, retain_graph=True)[0][0].abs().sum(0) for key in chosen])
    maps = (maps - maps.mean(0)).clamp(min=0).square()  # (keys, height, width), without what all keys share
    rows, columns = maps.sum(2), maps.sum(1)
    places = torch.arange(maps.shape[-1], dtype=maps.dtype)
    return torch.stack([rows @ places, columns @ places], 1) / maps.sum((1, 2))[:, None]


def first_layers(plan: DropKeyPlan) -> Iterator[tuple[int, KeyLayout]]:
    """The first layer of each class and number of keys."""
    seen = set()
    for index, layer in enumerate(plan.layers):
        if (layer.class_name, layer.keys) not in seen:
            assert layer.layout is not None
            seen.add((layer.class_name, layer.keys))
            yield index, layer.layout


@pytest.mark.parametrize("name", MODELS)
def test_keys_lie_in_the_image_where_the_layout_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model(name, num_classes=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # branches that start at zero show nothing
    plan = apply_dropkey(model, DropKeySettings(ratio=0.5, schedule="constant", structure="block"))
    image = torch.randn(1, *image_inputs(model)[0].shape[1:], requires_grad=True)
    keys = measured_keys(model, plan, image, monkeypatch)
    for index, layout in first_layers(plan):
        chosen = torch.randperm(layout.height * layout.width)[:20]
        looked = centres(keys[index], (layout.prefix_tokens + chosen).tolist(), image)
        claimed = torch.stack([chosen // layout.width, chosen % layout.width], 1).float()
        both = torch.corrcoef(torch.cat([looked, claimed], 1).T)
        assert both[0, 2] > 0.9, plan.layers[index]  # rows with rows
        assert both[1, 3] > 0.9, plan.layers[index]  # columns with columns


@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("vit_tiny_patch16_224", [(14, 14, 1)] * 12),
        ("deit_tiny_distilled_patch16_224", [(14, 14, 2)] * 12),
        ("vit_small_patch16_dinov3", [(16, 16, 5)] * 12),
        # Outlook attention has no keys; then 14 × 14 tokens, at the end two layers with the class token
        ("volo_d1_224", [(14, 14, 0)] * 14 + [(14, 14, 1)] * 2),
        ("swin_tiny_patch4_window7_224", [(7, 7, 0)] * 12),
    ],
)
def test_layouts_of_the_usual_models(name: str, layouts: list[tuple[int, int, int]]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = apply_dropkey(model, DropKeySettings(window_size=2))
    assert [layer.layout for layer in plan.layers] == [KeyLayout(*layout, 2) for layout in layouts]


@pytest.mark.parametrize(
    ("name", "options", "images", "reason"),
    [
        ("pvt_v2_b0", {}, (224, 320), "images are 224 × 320, and only square ones are supported"),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.75}, (224, 224), "patch_drop_rate leaves random tokens"),
        ("eva02_tiny_patch14_224", {"patch_drop_rate": 0.75}, (224, 224), "patch_drop_rate leaves random tokens"),
        ("naflexvit_base_patch16_gap", {"depth": 1}, (64, 64), "the model takes images of any proportions"),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 256, "window_size": (4, 16), "depths": (1,), "num_heads": (3,)},
            (256, 256),
            r"its windows are \(4, 16\), not square",
        ),
    ],
)
def test_what_could_be_another_grid_is_refused(
    name: str, options: dict[str, Any], images: tuple[int, int], reason: str
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    inputs = (torch.empty(2, 3, *images, device="meta"),)
    with pytest.raises(InputError, match=f"structure 'block' needs keys on a grid; .* has none: {reason}"):
        apply_dropkey(model, DropKeySettings(structure="block"), example_inputs=inputs)


def test_prefix_tokens_of_a_wrapped_model_count() -> None:
    with torch.device("meta"):
        models = [timm.create_model(name) for name in ("vit_small_patch16_dinov3", "pit_ti_distilled_224")]
    for model, prefix in zip(models, (5, 2), strict=True):
        inputs = (torch.empty(2, 3, *image_inputs(model)[0].shape[2:], device="meta"),)
        layers = apply_dropkey(nn.Sequential(nn.Identity(), model), example_inputs=inputs).layers
        assert {layer.layout and layer.layout.prefix_tokens for layer in layers} == {prefix}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hiera_tiny_224", r"layer 'blocks.0.attn' \(timm.models.hiera.MaskUnitAttention\) has none: .*sorted by mask unit"),
        ("nextvit_small", "EfficientAttention.* has none: its keys are means over runs of tokens"),
    ],
)
@pytest.mark.parametrize("structure", ["block", "cross"])
def test_structures_are_refused_where_keys_have_no_grid(name: str, reason: str, structure: Any) -> None:  # noqa: ANN401
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(InputError, match=f"structure '{structure}' needs keys on a grid; .*{reason}.*exclude: "):
        apply_dropkey(model, DropKeySettings(structure=structure))
    assert apply_dropkey(model, DropKeySettings(structure="key")).layers[0].layout is None


def test_keys_that_are_no_square_have_no_grid() -> None:
    class FewerTokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).mT[:, :12]

    model = nn.Sequential(FewerTokens(), timm.layers.attention.Attention(8, num_heads=2))
    with pytest.raises(InputError, match=r"layer '1' .* its 12 keys are not those of a square"):
        apply_dropkey(model, DropKeySettings(structure="block"), example_inputs=(torch.zeros(2, 8, 4, 4),))


class Tokens(nn.Module):
    """Attention that only the user knows."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).mT[:, None]
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("shape", "reason"), [((2, 16, 8), "input is no image"), ((2, 3, 4, 4), "DropKey does not know what its keys are")]
)
def test_structures_are_refused_where_nobody_knows_the_keys(shape: tuple[int, ...], reason: str) -> None:
    settings = DropKeySettings(structure="block", include=["*Tokens"])
    with pytest.raises(InputError, match=rf"needs keys on a grid; layer '0' .*{reason}"):
        apply_dropkey(nn.Sequential(Tokens()), settings, example_inputs=(torch.zeros(shape),))


def test_images_of_another_size_are_refused_in_training() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True).train()
    apply_dropkey(model, DropKeySettings(structure="cross"))
    with pytest.raises(InputError, match=r"KeyLayout\(height=14, .* does not describe 17 keys: .* the size that DropKey was"):
        model(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize("structure", ["block", "cross"])
@pytest.mark.parametrize("name", ["test_vit", "pvt_v2_b0"])
def test_structured_masks_drop_at_the_ratio_in_training(name: str, structure: Any) -> None:  # noqa: ANN401
    model = timm.create_model(name, num_classes=2).train()
    plan = apply_dropkey(model, DropKeySettings(ratio=0.3, schedule="constant", structure=structure))
    model(torch.randn(2, *image_inputs(model)[0].shape[1:])).sum().backward()
    for layer, state in zip(plan.layers, plan.states, strict=True):
        dropped, draws = state.counts.tolist()
        # A query's keys hang together: its grid counts as one draw, and sigma is at most 0.5 of it.
        assert abs(dropped / draws - 0.3) < 5 * 0.5 / (draws / layer.keys) ** 0.5
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
