"""Monte Carlo over masks: the mean and the standard deviation of what the network says with keys dropped in evaluation."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.patching.apply import DropKeyPlan
from dropkey_cli.seeds import derived_seed, seed_generators


class MonteCarlo:
    """Averages a network's outputs over masks: the second of the paper's two remedies for the train/inference gap.

    The masks of sample n of an image depend on the seed, n and the image's number alone: neither on the size of the batches
    nor on the number of processes. Only DropKey is switched on; the network stays in eval mode.

    Args:
        plan: What `apply_dropkey` gave for the network; None for one without DropKey.
        num_samples: Number of forwards, each with masks of its own.
        seed: The run's seed.

    Raises:
        InputError: If no keys would be dropped.
    """

    def __init__(self, plan: DropKeyPlan | None, num_samples: int, *, seed: int) -> None:
        if plan is None or not any(layer.ratio for layer in plan.layers):
            found = "was trained without DropKey" if plan is None else "has drop ratio 0 in every layer"
            raise InputError(f"--mc_samples {num_samples}: the network {found}, so all samples would be alike: leave it out")
        self.plan = plan
        self.num_samples = num_samples
        self.seed = seed

    def average(self, outputs: Callable[[], Mapping[str, Tensor]], images: Tensor) -> dict[str, Tensor]:
        """The means over masks, and the standard deviation of the probability.

        Args:
            outputs: Runs the network: ``probability`` (B, K), and whatever else is to be averaged.
            images: Number of each image, int64 (B,): its position in the data set.

        Returns:
            What ``outputs`` gives, averaged, and ``std`` (B, K), as `torch.std` gives it: NaN for a single sample. In float64
            where the device has it.
        """
        device = images.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        moments: dict[str, Moments] = {}
        drawn_from = [] if device.type == "cpu" else [device.index]  # beside the CPU's generator
        with self.plan.sampling(images), torch.random.fork_rng(drawn_from, device_type=device.type):
            for sample in range(self.num_samples):
                seed_generators(derived_seed(self.seed, sample), device)
                for name, value in outputs().items():
                    moments.setdefault(name, Moments()).add(value.to(dtype))
        return {name: each.mean for name, each in moments.items()} | {"std": moments["probability"].std}


class Moments:
    """Mean and standard deviation of tensors that come one by one, by Welford's method: two tensors, however many come."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Take in one more."""
        self.count += 1
        if self.count == 1:
            self.mean, self._squares = value.clone(), torch.zeros_like(value)
            return
        off = value - self.mean
        self.mean += off / self.count
        self._squares += off * (value - self.mean)

    @property
    def std(self) -> Tensor:
        """As `torch.std` gives it, over all that came; NaN for a single one."""
        return (self._squares / (self.count - 1)).sqrt() if self.count > 1 else torch.full_like(self.mean, torch.nan)
