from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.method.softmax import dropkey_softmax
from dropkey_cli.patching.apply import DropKeyPlan, PlannedLayer, apply_dropkey

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def vit(**options: Any) -> nn.Module:  # noqa: ANN401 - timm's own arguments
    torch.manual_seed(2)
    options = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_classes": 5} | options
    return timm.create_model("vit_tiny_patch16_224", **options).train()


def patched(ratio: float = 0.4) -> tuple[nn.Module, DropKeyPlan]:
    model = vit()
    return model, apply_dropkey(model, DropKeySettings(ratio=ratio, schedule="constant"))


def output_at_seed(model: nn.Module, seed: int = 7) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        output: Tensor = model(IMAGES)
    return output


def test_default_is_the_papers_decreasing_schedule_on_every_layer() -> None:
    plan = apply_dropkey(vit())
    assert plan.settings == DropKeySettings()
    assert [layer.ratio for layer in plan.layers] == pytest.approx([0.3, 0.15, 0.0])
    assert [float(state.ratio) for state in plan.states] == pytest.approx([0.3, 0.15, 0.0])


def test_plan_describes_its_layers() -> None:
    _, plan = patched()
    (first, *_) = plan.layers
    assert isinstance(first, PlannedLayer)
    assert (first.name, first.class_name) == ("blocks.0.attn", "timm.layers.attention.Attention")
    assert (first.kind, first.function, first.queries, first.keys, first.heads) == ("key", "sdpa", 17, 17, 3)
    assert plan.left_alone == []


def test_second_application_is_refused() -> None:
    model, plan = patched()
    with pytest.raises(InputError, match=r"VisionTransformer has DropKey already: call plan\.remove\(\)"):
        apply_dropkey(model)
    plan.remove()
    assert len(apply_dropkey(model).layers) == 3


def test_refused_model_is_unchanged() -> None:
    model = vit()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match="schedule lists 2 ratios, the model has 3 layers"):
        apply_dropkey(model, DropKeySettings(schedule=[0.1, 0.2]))
    assert [type(module) for module in model.modules()] == classes
    assert len(apply_dropkey(model).layers) == 3


def test_wrapped_model_is_patched_inside() -> None:
    model = nn.Sequential(vit())
    plan = apply_dropkey(model, example_inputs=(IMAGES,))
    assert [layer.name for layer in plan.layers] == ["0.blocks.0.attn", "0.blocks.1.attn", "0.blocks.2.attn"]


def test_layer_with_ratio_0_draws_no_mask() -> None:
    model = vit()
    plan = apply_dropkey(model, DropKeySettings(schedule=[0.5, 0.0, 0.5]))
    model(IMAGES)
    assert [state.counts[1] > 0 for state in plan.states] == [True, False, True]


def test_ratio_0_leaves_the_generator_alone() -> None:
    model, plan = patched(ratio=0.0)
    state = torch.get_rng_state()
    model(IMAGES)
    with plan.sampling():
        model.eval()(IMAGES)
    assert torch.equal(torch.get_rng_state(), state)


def test_train_and_eval_switch_as_they_do_in_torch() -> None:
    model, _ = patched()
    plain = vit().eval()
    expected = output_at_seed(plain)
    trained = output_at_seed(model)
    assert not torch.equal(trained, expected)
    assert torch.equal(output_at_seed(model.eval()), expected)
    assert torch.equal(output_at_seed(model.train()), trained)
    model.blocks.eval()  # type: ignore[union-attr]  # frozen in part: those modules do not drop
    assert torch.equal(output_at_seed(model), expected)


def test_disabled_plan_computes_as_unpatched() -> None:
    model, plan = patched()
    expected = output_at_seed(vit())
    trained = output_at_seed(model)
    assert plan.enabled
    plan.enabled = False
    assert not plan.enabled
    state = torch.get_rng_state()
    assert torch.equal(model(IMAGES), expected)
    assert torch.equal(torch.get_rng_state(), state)
    with plan.sampling():
        assert torch.equal(model.eval()(IMAGES), output_at_seed(vit().eval()))
    plan.enabled = True
    assert torch.equal(output_at_seed(model.train()), trained)


def test_set_ratios_changes_plan_and_masks() -> None:
    model, plan = patched()
    plan.set_ratios([0.9, 0.0, 0.1])
    assert [layer.ratio for layer in plan.layers] == [0.9, 0.0, 0.1]
    for _ in range(20):
        model(IMAGES)
    shares = [float(dropped / draws) if draws else 0.0 for dropped, draws in (state.counts for state in plan.states)]
    assert shares == pytest.approx([0.9, 0.0, 0.1], abs=0.01)
    plan.set_ratios([0.0, 0.0, 0.0])
    assert torch.equal(output_at_seed(model), output_at_seed(vit()))


def test_set_ratios_refuses_another_number_and_range() -> None:
    _, plan = patched()
    with pytest.raises(InputError, match="2 ratios given for 3 layers"):
        plan.set_ratios([0.1, 0.2])
    with pytest.raises(InputError, match=r"ratios\[1\] 1\.5 is not a drop ratio"):
        plan.set_ratios([0.1, 1.5, 0.2])
    assert [layer.ratio for layer in plan.layers] == [0.4, 0.4, 0.4]
    assert [float(state.ratio) for state in plan.states] == pytest.approx([0.4, 0.4, 0.4])


def test_sampling_drops_in_eval_and_leaves_eval_as_it_was() -> None:
    model, plan = patched()
    expected = output_at_seed(model.eval())
    with plan.sampling():
        first, second, again = (output_at_seed(model, seed) for seed in (7, 8, 7))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, expected)
    assert torch.equal(output_at_seed(model), expected)
    assert not model.training


def test_sampling_ends_with_an_error_and_nests() -> None:
    model, plan = patched()
    expected = output_at_seed(model.eval())
    with pytest.raises(KeyError, match="mine"), plan.sampling():
        raise KeyError("mine")
    assert torch.equal(output_at_seed(model), expected)
    with plan.sampling():
        with plan.sampling():
            pass
        assert not torch.equal(output_at_seed(model), expected)
    assert torch.equal(output_at_seed(model), expected)


def test_removing_gives_the_model_back() -> None:
    model, plan = patched()
    plan.remove()
    plain = vit()
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert [sorted(vars(module)) for module in model.modules()] == [sorted(vars(module)) for module in plain.modules()]
    assert torch.equal(output_at_seed(model), output_at_seed(plain))
    assert plan.layers == []


def test_class_put_on_top_keeps_dropping() -> None:
    # FSDP2's fully_shard puts a subclass of its own over each module it shards.
    model, _ = patched()
    attention = model.blocks[0].attn  # type: ignore[index,union-attr]  # timm's
    attention.__class__ = type("OnTop", (type(attention),), {})
    output = output_at_seed(model)
    assert not torch.equal(output, output_at_seed(vit()))
    assert torch.equal(output_at_seed(model.eval()), output_at_seed(vit().eval()))


def test_model_itself_can_be_the_layer() -> None:
    model = timm.layers.attention.Attention(24, num_heads=3).train()
    plan = apply_dropkey(model, DropKeySettings(ratio=0.5, schedule="constant"), example_inputs=(torch.zeros(2, 9, 24),))
    model(torch.randn(2, 9, 24))
    assert [layer.name for layer in plan.layers] == [""]
    assert plan.states[0].counts[1] == 2 * 3 * 9 * 9
    plan.remove()
    assert type(model) is timm.layers.attention.Attention


def test_image_size_may_change_after_patching() -> None:
    model = vit(dynamic_img_size=True)
    plan = apply_dropkey(model, DropKeySettings(ratio=0.4, schedule="constant"))
    model(torch.randn(1, 3, 48, 64))
    assert plan.states[0].counts[1] == 3 * 49 * 49


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["cait_xxs24_224", "efficientformerv2_s0"])
def test_talking_heads_share_their_mask_when_asked_to(name: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []

    def softmax(*args: Any, **options: Any) -> Tensor:  # noqa: ANN401 - what the softmax takes
        weights.append(dropkey_softmax(*args, **options))
        return weights[-1]

    monkeypatch.setattr("dropkey_cli.patching.interception.dropkey_softmax", softmax)
    model = timm.create_model(name, num_classes=2).train()
    settings = DropKeySettings(ratio=0.3, schedule="constant", share_talking_heads=shared)
    plan = apply_dropkey(model, settings)
    model(torch.randn(1, 3, 224, 224))
    talking = [layer.rule.talking_heads for layer in plan.layers if layer.function == "softmax"]
    assert any(talking)
    for talks, layer_weights in zip(talking, weights, strict=True):
        dropped = layer_weights == 0  # (B, H, N, S)
        assert bool((dropped == dropped[:, :1]).all()) == (talks and shared)
        assert dropped.float().mean() == pytest.approx(0.3, abs=0.05)


def test_sharing_talking_heads_where_none_talk_is_refused() -> None:
    with pytest.raises(InputError, match="share_talking_heads is for models that mix their heads, VisionTransformer does not"):
        apply_dropkey(vit(), DropKeySettings(share_talking_heads=True))


def test_an_image_has_its_masks_in_every_batch() -> None:
    model, plan = patched()
    images = torch.randn(3, 3, 32, 32)

    def sampled(places: list[int], numbers: list[int]) -> Tensor:
        torch.manual_seed(7)
        with torch.no_grad(), plan.sampling(torch.tensor(numbers)):
            return model.eval()(images[places])  # type: ignore[no-any-return]

    whole = sampled([0, 1, 2], [10, 11, 12])
    torch.testing.assert_close(sampled([2, 0], [12, 10]), whole[[2, 0]])
    same_image = sampled([0, 0, 0], [10, 11, 10])
    torch.testing.assert_close(same_image[[0, 2]], whole[[0, 0]])
    assert (same_image[1] - same_image[0]).abs().max() > 1e-3
    with plan.sampling(torch.tensor([1])), plan.sampling():
        assert plan.states[0].images is None
    assert plan.states[0].images is None
