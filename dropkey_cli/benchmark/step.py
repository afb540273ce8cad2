"""The training-step table: forward, loss, backward and AdamW of a whole model, with and without DropKey."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkey_cli.benchmark.attention import Skipped
from dropkey_cli.benchmark.memory import peak_bytes, saved_bytes
from dropkey_cli.benchmark.paper import paste_listing
from dropkey_cli.benchmark.settings import BenchmarkSettings
from dropkey_cli.benchmark.timing import Quartiles, clock_for, interleave, paired_ratio
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings, Structure
from dropkey_cli.models.factory import create_model
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey

NUM_CLASSES = 1000
NUM_BATCHES = 3
"""Batches that are trained on in turn."""


@dataclass(frozen=True)
class StepRow:
    """One variant's figures.

    Args:
        name: The variant.
        seconds: Of one training step, of each round.
        ratio: Of the step to the first row's.
        peak_bytes: Most memory in use at once, beyond weights and optimizer state; None on a CPU.
        saved_bytes: Kept from the forward for the backward pass, without the weights.
        drop_ratio: Share of the draws that dropped a key; None where nobody counts.
    """

    name: str
    seconds: list[float]
    ratio: Quartiles
    peak_bytes: int | None
    saved_bytes: int
    drop_ratio: float | None


@dataclass(frozen=True)
class Network:
    """The model to time.

    Args:
        name: timm's name.
        image_size: Height and width in pixels.
        batch_size: Images per step.
        model_args: Further arguments of the constructor.
    """

    name: str
    image_size: int
    batch_size: int
    model_args: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return (self.model_args.get("in_chans", 3), self.image_size, self.image_size)

    def build(self, device: torch.device) -> nn.Module:
        """In training mode, with random weights."""
        torch.manual_seed(0)
        model = create_model(
            self.name, num_classes=NUM_CLASSES, image_size=self.image_size, pretrained=False, model_args=self.model_args
        )
        return model.to(device).train()


@dataclass(frozen=True)
class Form:
    """One form of the model: a copy that shares the model's weights.

    Args:
        network: What is trained: the copy, or its compiled function.
        plan: That of a network with DropKey, which counts what it drops.
        counted: Whether the share of dropped keys is known: not with the paper's listing.
    """

    network: Callable[[Tensor], Tensor]
    plan: DropKeyPlan | None = None
    counted: bool = True

    @property
    def drop_ratio(self) -> float | None:
        """Share of all draws so far that dropped a key."""
        if self.plan is None:
            return 0.0 if self.counted else None
        dropped, draws = torch.stack([state.counts for state in self.plan.states]).sum(0).tolist()
        return float(dropped / draws)


def measure_steps(network: Network, settings: BenchmarkSettings) -> tuple[list[StepRow], list[Skipped]]:
    """Time a training step of every form of a model.

    Raises:
        InputError: If the model is unknown or takes no DropKey.
    """
    model = network.build(settings.device)
    found, skipped = forms(model, network, settings)
    training = Training(model, network, settings)
    steps = {name: partial(training.step, form) for name, form in found.items()}
    clock, _ = clock_for(settings.device, settings.num_threads)
    seconds = interleave(steps, clock, rounds=settings.rounds)
    reference = next(iter(seconds.values()))
    rows = [
        StepRow(
            name=name,
            seconds=seconds[name],
            ratio=paired_ratio(seconds[name], reference),
            peak_bytes=peak_bytes(partial(steps[name], 0), settings.device),
            saved_bytes=saved_bytes(partial(training.loss, form, 0), leave_out=model.parameters()),
            drop_ratio=form.drop_ratio,
        )
        for name, form in found.items()
    ]
    return rows, skipped


class Training:
    """Weights, optimizer and random batches that all forms of a model share."""

    def __init__(self, model: nn.Module, network: Network, settings: BenchmarkSettings) -> None:
        self.settings = settings
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
        self.scaler = torch.amp.GradScaler(settings.device.type, enabled=settings.precision == "16-mixed")
        size = (NUM_BATCHES, network.batch_size, *network.image_shape)
        self.images = torch.randn(size, device=settings.device)
        self.labels = torch.randint(NUM_CLASSES, size[:2], device=settings.device)

    def loss(self, form: Form, number: int) -> Tensor:
        """The loss of one of the batches, in turn."""
        images, labels = self.images[number % NUM_BATCHES], self.labels[number % NUM_BATCHES]
        with self.settings.autocast():
            return F.cross_entropy(form.network(images), labels)

    def step(self, form: Form, number: int) -> None:
        """One training step: forward, loss, backward, AdamW."""
        self.scaler.scale(self.loss(form, number)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def forms(model: nn.Module, network: Network, settings: BenchmarkSettings) -> tuple[dict[str, Form], list[Skipped]]:
    """The model without DropKey, with each structure, and with the paper's listing; some also compiled; and what it cannot.

    Raises:
        InputError: If it takes no DropKey at all.
    """
    makers: dict[str, Callable[[], Form]] = {"without DropKey": lambda: Form(_sharing_weights(model))}
    for structure in get_args(Structure):
        makers[f"dropkey {structure}"] = partial(_with_dropkey, model, structure, network, settings)
    makers["dropkey element"]()  # a model that takes no DropKey at all is refused here
    makers["paper"] = partial(_with_listing, model, network, settings)
    if settings.compiled:
        for name in ("without DropKey", "dropkey element", "paper"):
            makers[f"{name}, compiled"] = partial(_compiled, makers[name])
    found, skipped = {}, []
    for name, make in makers.items():
        try:
            found[name] = make()
        except InputError as error:
            skipped.append(Skipped(name, str(error)))
    return found, skipped


def _sharing_weights(model: nn.Module) -> nn.Module:
    """A copy with the same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _with_dropkey(model: nn.Module, structure: Structure, network: Network, settings: BenchmarkSettings) -> Form:
    patched = _sharing_weights(model)
    # Constant, so that every layer pays
    dropkey = DropKeySettings(settings.ratio, schedule="constant", structure=structure)
    images = torch.empty(2, *network.image_shape, device="meta")
    return Form(patched, apply_dropkey(patched, dropkey, example_inputs=(images,)))


def _with_listing(model: nn.Module, network: Network, settings: BenchmarkSettings) -> Form:
    pasted, plan = _sharing_weights(model), _with_dropkey(model, "element", network, settings).plan
    assert plan is not None
    paste_listing(pasted, plan)
    return Form(pasted, counted=False)


def _compiled(make: Callable[[], Form]) -> Form:
    form = make()
    return replace(form, network=torch.compile(form.network, dynamic=False))
