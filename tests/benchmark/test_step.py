import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dropkey_cli.benchmark import step
from dropkey_cli.benchmark.settings import BenchmarkSettings, Precision
from dropkey_cli.benchmark.step import Form, Network, StepRow, Training, forms, measure_steps
from dropkey_cli.errors import InputError

SETTINGS = BenchmarkSettings(torch.device("cpu"), "32-true", 0.1, rounds=2, num_threads=1, compiled=False)
TINY = Network("vit_tiny_patch16_224", 32, 4, {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2})
NAMES = ["without DropKey", "dropkey element", "dropkey key", "dropkey block", "dropkey cross", "paper"]


def build() -> tuple[torch.nn.Module, dict[str, Form]]:
    model = TINY.build(SETTINGS.device)
    return model, forms(model, TINY, SETTINGS)[0]


def test_rows_of_a_model() -> None:
    rows, skipped = measure_steps(TINY, SETTINGS)
    assert [row.name for row in rows] == NAMES
    assert skipped == []
    assert rows[0].ratio == (1, 1, 1)
    for row in rows:
        assert len(row.seconds) == 2
        assert all(0 < seconds < math.inf for seconds in row.seconds)
        assert row.saved_bytes > 0
        assert row.peak_bytes is None
    ratios = {row.name: row.drop_ratio for row in rows}
    assert (ratios.pop("without DropKey"), ratios.pop("paper")) == (0, None)
    assert ratios == pytest.approx(dict.fromkeys(NAMES[1:-1], 0.1), abs=0.03)


def test_all_forms_train_the_same_weights() -> None:
    model, found = build()
    parameters = {id(parameter) for parameter in model.parameters()}
    for form in found.values():
        assert isinstance(form.network, torch.nn.Module)
        assert {id(parameter) for parameter in form.network.parameters()} == parameters
        assert form.network is not model


def test_only_the_forms_with_dropkey_drop() -> None:
    model, found = build()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    outputs = {name: form.network(images) for name, form in found.items()}
    assert [name for name, output in outputs.items() if torch.equal(output, expected)] == ["without DropKey"]
    assert len({output.sum().item() for output in outputs.values()}) == len(NAMES)


def test_a_step_is_adamws_on_the_mean_loss() -> None:
    model, found = build()
    twin = TINY.build(SETTINGS.device)
    training = Training(model, TINY, SETTINGS)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4, weight_decay=0.05)
    before = training.loss(found["without DropKey"], 0).item()
    for number in range(4):
        training.step(found["without DropKey"], number)
        batch = number % 3  # three batches in turn
        F.cross_entropy(twin(training.images[batch]), training.labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    after = training.loss(found["without DropKey"], 0).item()
    assert after < before - 1e-3
    assert after == pytest.approx(F.cross_entropy(twin(training.images[0]), training.labels[0]).item(), abs=1e-5)


def test_without_gradients_a_step_is_adamws_weight_decay() -> None:
    model = TINY.build(SETTINGS.device)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    training = Training(model, TINY, SETTINGS)
    nothing = Form(lambda images: torch.zeros(4, 1000) + 0 * sum(parameter.sum() for parameter in model.parameters()))
    for number in range(20):
        training.step(nothing, number)
    for parameter, start in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), start * (1 - 1e-4 * 0.05) ** 20, rtol=1e-5, atol=0)


def test_float16_steps_scale_the_loss_and_skip_what_overflows() -> None:
    weight = torch.nn.Parameter(torch.ones(1000))
    training = Training(torch.nn.ParameterList([weight]), TINY, replace(SETTINGS, precision="16-mixed"))
    scale = training.scaler.get_scale()
    training.step(Form(lambda images: (weight * torch.inf).expand(4, -1)), 0)
    assert torch.equal(weight.detach(), torch.ones(1000))
    assert 1 < training.scaler.get_scale() < scale
    training.step(Form(lambda images: weight.expand(4, -1)), 1)
    assert not torch.equal(weight.detach(), torch.ones(1000))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_only_float16_scales_the_loss(precision: Precision) -> None:
    training = Training(TINY.build(SETTINGS.device), TINY, replace(SETTINGS, precision=precision))
    assert training.scaler.scale(torch.ones(())).item() == 1


def test_memory_is_looked_at_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TINY.build(SETTINGS.device)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    monkeypatch.setattr(Network, "build", lambda self, device: model)
    monkeypatch.setattr(step, "interleave", lambda calls, clock, rounds: {name: [1.0] for name in calls})
    measure_steps(TINY, SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_weights_do_not_count_as_saved() -> None:
    narrow = measure_steps(TINY, SETTINGS)[0][0].saved_bytes
    model = TINY.build(SETTINGS.device)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    one_image = measure_steps(replace(TINY, batch_size=1), SETTINGS)[0][0].saved_bytes
    # Were weights counted, four images would not keep nearly four times as much as one
    assert weights > one_image
    assert narrow == pytest.approx(4 * one_image, rel=0.02)


def test_structures_a_model_cannot_take_are_left_out_with_the_reason() -> None:
    hiera = Network("hiera_tiny_224", 224, 1, {})
    found, skipped = forms(hiera.build(SETTINGS.device), hiera, SETTINGS)
    assert list(found) == ["without DropKey", "dropkey element", "dropkey key", "paper"]
    assert [row.name for row in skipped] == ["dropkey block", "dropkey cross"]
    assert "needs keys on a grid" in skipped[0].why


def test_mixed_precision() -> None:
    rows, _ = measure_steps(TINY, replace(SETTINGS, precision="bf16-mixed"))
    full, _ = measure_steps(TINY, SETTINGS)
    assert rows[0].saved_bytes < full[0].saved_bytes


@pytest.mark.parametrize(
    ("name", "message"), [("resnet18", "ResNet has no attention layer"), ("vit_tny", "'vit_tny' is not a model")]
)
def test_models_without_dropkey_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_steps(Network(name, 64, 2, {}), SETTINGS)


@pytest.mark.slow
def test_compiled_forms() -> None:
    rows, _ = measure_steps(TINY, replace(SETTINGS, compiled=True))
    names = [row.name for row in rows]
    assert names == [*NAMES, "without DropKey, compiled", "dropkey element, compiled", "paper, compiled"]
    compiled: dict[str, StepRow] = {row.name: row for row in rows}
    assert compiled["dropkey element, compiled"].drop_ratio == pytest.approx(0.1, abs=0.03)
