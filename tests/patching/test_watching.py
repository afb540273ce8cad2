import pytest
import timm
import torch

from dropkey_cli.patching.selection import NoAttentionError
from dropkey_cli.patching.watching import WatchedAttention


def test_a_network_is_as_it_was_while_it_is_watched_and_afterwards() -> None:
    model = timm.create_model("test_vit", img_size=32, attn_drop_rate=0.5)
    images = torch.randn(2, 3, 32, 32)
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    watched = WatchedAttention(model, (images,))
    for _ in range(2):
        torch.manual_seed(0)
        expected = model(images)
        torch.manual_seed(0)
        with watched.plan() as plan, plan.recording() as kept:
            assert torch.equal(model(images), expected)
            assert list(model.state_dict()) == names
        assert [type(module) for module in model.modules()] == classes
        assert not any(hasattr(module, "dropkey") for module in model.modules())
        for (weights,) in kept.values():  # before the dropout of weights
            assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(NoAttentionError, match="no attention layer"):
        WatchedAttention(timm.create_model("test_resnet"), (torch.empty(2, 3, 64, 64, device="meta"),))
