import importlib

import pytest
import timm
import torch
from torch import Tensor, nn

from dropkey_cli.patching.known import KNOWN, class_name, rule_for


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_name_is_a_module_class_of_the_installed_libraries(name: str) -> None:
    module, _, cls = name.rpartition(".")
    found = getattr(importlib.import_module(module), cls)
    assert issubclass(found, nn.Module)
    assert class_name(found) == name
    assert rule_for(found) is KNOWN[name]


def test_classes_left_out_say_why() -> None:
    for name, rule in KNOWN.items():
        assert bool(rule.why) or rule.kind in ("key", "class"), name


def test_subclass_with_its_parents_forward_takes_its_rule() -> None:
    class Mine(timm.models.beit.Attention):
        pass

    class MineToo(nn.MultiheadAttention):
        pass

    assert rule_for(Mine) is KNOWN["timm.models.beit.Attention"]
    assert rule_for(MineToo) is KNOWN["torch.nn.modules.activation.MultiheadAttention"]


def test_subclass_with_a_forward_of_its_own_is_unknown() -> None:
    class ChannelAttention(timm.layers.attention.Attention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # as a new timm class might
            q, k, v = self.qkv(x).chunk(3, -1)
            mixed: Tensor = torch.softmax(q.mT @ k, -1) @ v.mT
            return mixed.mT

    class Renamed(ChannelAttention):
        pass

    assert rule_for(ChannelAttention) is None
    assert rule_for(Renamed) is None


def test_unknown_class_has_no_rule() -> None:
    class Attention(nn.Module):
        pass

    assert rule_for(Attention) is None
    assert rule_for(nn.Linear) is None


def test_modules_that_renormalise_or_subtract_maps_share_their_mask() -> None:
    sharing = {name.rpartition(".")[2] for name, rule in KNOWN.items() if rule.share_mask}
    assert sharing == {"GPSA", "DiffAttention", "DiffParallelScalingBlock"}
    assert [name for name, rule in KNOWN.items() if rule.keep_empty_rows] == ["timm.models.convit.GPSA"]
