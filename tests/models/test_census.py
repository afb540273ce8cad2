from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import timm
import torchvision
from timm.models import _registry
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dropkey_cli import catalog
from dropkey_cli.catalog import TABLE, CatalogEntry, read_catalog
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.models.census import measure, record, summarise, take_census
from dropkey_cli.patching.discovery import AttentionCall
from dropkey_cli.patching.known import class_name, rule_for
from dropkey_cli.patching.selection import select_layers

REGENERATE = "python -m dropkey_cli.models.census"
SHIPPED = read_catalog()

# Layers that take DropKey, counted by hand in timm's source; for 0, what the reason names.
HAND_COUNTS: dict[str, tuple[int, list[str]]] = {
    "vit_tiny_patch16_224": (12, []),
    "swin_tiny_patch4_window7_224": (2 + 2 + 6 + 2, []),
    "volo_d1_224": (14 + 2, []),  # without the four outlook blocks
    "davit_tiny": (1 + 1 + 3 + 1, []),  # without the channel blocks
    "cait_xxs24_224": (24 + 2, []),
    "levit_128s": (2 + 3 + 4 + 2, []),
    "vit_so400m_patch14_siglip_224": (27, []),  # without the pooling head
    "xcit_nano_12_p16_224": (0, ["XCA attends over channels", "ClassAttn is a class token's attention only"]),
    "resnet50_clip": (0, ["AttentionPool2d is a pooling head"]),
    "coat_tiny": (0, ["FactorAttnConvRelPosEnc is linear attention"]),
    "efficientvim_m1": (0, ["HSMSSD mixes states", "EfficientViM weights branches"]),
    "csatv2": (0 + 0 + 2 + 2, []),  # without the blocks that attend across the batch
    "resnet18": (0, ["no attention"]),
}


@pytest.mark.parametrize("name", HAND_COUNTS)
def test_shipped_lines_are_what_is_measured_and_what_timms_source_says(name: str) -> None:
    layers, phrases = HAND_COUNTS[name]
    entry = measure(name)
    assert entry == SHIPPED.entries[name], f"the table is stale: {REGENERATE}"
    assert entry.attention_layers == layers
    assert bool(entry.reason) == (layers == 0)
    for phrase in phrases:
        assert phrase in str(entry.reason)


@pytest.mark.parametrize(("name", "other"), [("resnet18", "resnet18"), ("vit_base_patch16_224", "vit_b_16")])
def test_parameters_are_those_of_torchvisions_model(name: str, other: str) -> None:
    expected = sum(parameter.numel() for parameter in torchvision.models.get_model(other).parameters())
    assert SHIPPED.entries[name].parameters == expected


def shipped_names() -> list[str]:
    """All names but those that other tests or plugins have registered."""
    return [n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith(("timm.", "dropkey_cli."))]


@pytest.mark.skipif(timm.__version__ != SHIPPED.timm_version, reason="the table is of another timm")
def test_the_table_has_every_architecture_and_no_other() -> None:
    difference = SHIPPED.entries.keys() ^ set(shipped_names())
    assert not difference, f"{REGENERATE} {' '.join(sorted(difference))}"
    assert list(SHIPPED.entries) == shipped_names(), "the table is not in timm's order"


@pytest.mark.skipif(timm.__version__ != SHIPPED.timm_version, reason="the table is of another timm")
def test_the_table_says_of_weights_what_timm_says() -> None:
    tags = defaultdict(set)
    for weights in timm.list_pretrained():
        architecture, _, tag = weights.partition(".")
        tags[architecture].add(tag)
    for name, entry in SHIPPED.entries.items():
        config = timm.get_pretrained_cfg(name)
        assert config is not None, name
        assert entry.input_size == config.input_size, name
        assert len(entry.pretrained) == len(tags[name]), name
        assert set(entry.pretrained) == tags[name], name
        assert entry.pretrained[:1] == ((config.tag,) if tags[name] else ()), f"{name}: the default first"
        assert entry.licence == (config.license if tags[name] else None), name


class StrangeAttention(nn.Module):
    """Attention that no table knows."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:  # noqa: ANN401 - the block's arguments
        return (x @ x.transpose(-2, -1)).softmax(dim=-1) @ x


def small_vit(**_: Any) -> nn.Module:  # noqa: ANN401 - timm's arguments
    return VisionTransformer(img_size=32, patch_size=16, embed_dim=48, depth=3, num_heads=3, num_classes=2)


def strange_vit(**_: Any) -> nn.Module:  # noqa: ANN401
    model = small_vit()
    model.blocks[1].attn = StrangeAttention()  # type: ignore[index, union-attr]
    return model


def broken_vit(**_: Any) -> nn.Module:  # noqa: ANN401
    raise ZeroDivisionError("no heads")


@contextmanager
def registered(model: Callable[..., nn.Module]) -> Iterator[str]:
    """The name of a model that timm knows for as long as the context lasts."""
    _registry.register_model(model)
    try:
        yield model.__name__
    finally:
        _registry._clear_model_entries(model.__name__)
        del _registry._model_entrypoints[model.__name__]


def test_an_architecture_that_the_table_lacks_is_measured() -> None:
    with registered(small_vit) as name:
        parameters = sum(parameter.numel() for parameter in small_vit().parameters())
        assert measure(name) == CatalogEntry(name, parameters, (3, 224, 224), (), None, 3, None)
    assert not timm.is_model("small_vit")


def test_an_unknown_attention_class_is_the_reason() -> None:
    with registered(strange_vit) as name:
        entry = measure(name)
    assert entry.attention_layers == 0
    assert str(entry.reason).startswith("layer 'blocks.1.attn'")
    assert "StrangeAttention" in str(entry.reason)


def test_an_architecture_that_cannot_be_built_says_why() -> None:
    with registered(broken_vit) as name:
        expected = "timm cannot build broken_vit without weights: ZeroDivisionError: no heads"
        assert measure(name) == CatalogEntry(name, None, (3, 224, 224), (), None, 0, expected)


def test_a_part_of_the_table_is_not_measured_with_another_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "catalog.csv"
    copy.write_text(TABLE.read_text(encoding="utf-8").replace(SHIPPED.timm_version, "0.0.1", 1), encoding="utf-8")
    monkeypatch.setattr(catalog, "TABLE", copy)
    with pytest.raises(InputError, match=f"catalog.csv is of timm 0.0.1, this is {timm.__version__}: measure all"):
        take_census(["resnet18"])


@pytest.mark.slow
def test_a_pattern_renews_only_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = TABLE.read_text(encoding="utf-8")
    stale_line = shipped.replace("\nresnet18,", "\nresnet18,9")
    copy = tmp_path / "catalog.csv"
    copy.write_text(stale_line.replace("\ntest_vit,", "\ntest_vit,9"), encoding="utf-8")
    monkeypatch.setattr(catalog, "TABLE", copy)
    assert take_census(["test_vit"]) == 1
    assert copy.read_text(encoding="utf-8") == stale_line


def takes_dropkey_alone(call: AttentionCall) -> bool:
    """Whether a call is attention over keys that DropKey acts on unasked."""
    rule = rule_for(call.cls)
    return call.over_keys and rule is not None and rule.kind in ("key", "class") and not rule.why


def kind_of(name: str, calls: list[AttentionCall]) -> str:
    """default, include (only class tokens or pooling heads attend), refused or none; checks the layers on the way."""
    if not calls:
        return "none"
    if SHIPPED.entries[name].attention_layers:
        layers = select_layers(calls, DropKeySettings(), model_name=name).selected
        firsts: dict[str, AttentionCall] = {}
        for call in filter(takes_dropkey_alone, calls):
            firsts.setdefault(call.layer, call)
        assert [layer.name for layer in layers] == list(firsts), name
        for layer in layers:
            assert (layer.queries, layer.keys) == firsts[layer.name].logits_shape[-2:], (name, layer)
        return "default"
    classes = {class_name(call.cls) for call in calls if (rule := rule_for(call.cls)) and rule.kind in ("class", "pool")}
    if not classes:
        return "refused"
    assert select_layers(calls, DropKeySettings(include=sorted(classes)), model_name=name).selected, name
    return "include"


@pytest.mark.slow
def test_census_of_every_architecture() -> None:
    unknown: dict[str, list[str]] = defaultdict(list)
    stale: list[str] = []
    kinds: Counter[str] = Counter()
    names = shipped_names()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for name, (parameters, calls) in zip(names, pool.map(record, names, chunksize=8), strict=True):
            for missing in {class_name(call.cls) for call in calls if rule_for(call.cls) is None}:
                unknown[missing].append(name)
            if summarise(name, parameters, calls) != SHIPPED.entries.get(name):
                stale.append(name)
            elif timm.model_entrypoint(name).__module__.startswith("timm."):
                kinds[kind_of(name, calls)] += 1
    assert not unknown, f"dropkey_cli/patching/known.py lacks these attention classes: {dict(unknown)}"
    assert not stale, f"the table is stale for {stale}: {REGENERATE}"
    if timm.__version__ == "1.0.31":
        assert kinds == {"default": 628, "include": 33, "refused": 48, "none": 662}
