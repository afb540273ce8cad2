"""Image classification: one class per image."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection

from dropkey_cli.data.dataset import Batch, counted
from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.models.factory import create_model, describe_weights, image_config
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.tasks.description import check_same_network, describe
from dropkey_cli.tasks.metrics import MeanLoss, classification_metrics
from dropkey_cli.tasks.optimization import AskedOptions, create_adamw, create_cosine

IMAGES_PER_BASE_STEP = 256
BASE_LR = 5e-4


class Classification(LightningModule):
    """A timm vision transformer with DropKey that learns one class per image.

    Attributes:
        monitor: The metric whose highest value marks the best checkpoint.

    Args:
        model_name: timm's name of the network, with or without a weights' tag, e.g. vit_small_patch16_224.
        pretrained: Start from timm's pretrained weights; false trains from scratch.
        model_args: Further arguments of the network's constructor, e.g. {"drop_path_rate": 0.1}.
        dropkey: How keys are dropped in training; null trains without DropKey.
        lr: Learning rate after warm-up; by default 5e-4 times the images per optimizer step over 256.
        layer_decay: Factor on the learning rate from each layer to the one before it, in (0, 1]; by default 0.75 for
            pretrained weights and 1 from scratch.
        weight_decay: AdamW's weight decay; biases and norms have none.
        warmup_share: Share of all steps in which the learning rate rises linearly, in [0, 1); a cosine to 0 follows.
        label_smoothing: Probability given to all the wrong classes together in the training loss, in [0, 1).
        compile: Compile the network in fit: later steps are faster on a GPU, the first takes a minute or so.
    """

    monitor = "val/balanced_acc"

    def __init__(
        self,
        model_name: str = "vit_small_patch16_224",
        *,
        pretrained: bool = True,
        model_args: dict[str, Any] | None = None,
        dropkey: DropKeySettings | None = DropKeySettings(),  # noqa: B008 - frozen
        lr: float | None = None,
        layer_decay: float | None = None,
        weight_decay: float = 0.05,
        warmup_share: float = 0.1,
        label_smoothing: float = 0.1,
        compile: bool = False,
    ) -> None:
        super().__init__()
        _check("lr", lr, lr is None or lr >= 0, "0 or more")
        _check("layer_decay", layer_decay, layer_decay is None or 0 < layer_decay <= 1, "a factor above 0, at most 1")
        _check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        _check("warmup_share", warmup_share, 0 <= warmup_share < 1, "a share from 0 up to, but not including, 1")
        _check("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "a share from 0 up to, but not including, 1")
        self.model_name = model_name
        self.pretrained = pretrained
        self.model_args = model_args or {}
        self.dropkey = dropkey
        self.lr = lr
        self.layer_decay = layer_decay if layer_decay is not None else (0.75 if pretrained else 1.0)
        self.weight_decay = weight_decay
        self.warmup_share = warmup_share
        self.label_smoothing = label_smoothing
        self.compiled = compile
        self.network: nn.Module | None = None
        self.dropkey_plan: DropKeyPlan | None = None
        self.metrics = nn.ModuleDict()
        self._epoch_logged = -1
        self._num_saved_groups: int | None = None
        self._asked: AskedOptions | None = None

    def configure_model(self) -> None:
        """Build the network for the data's classes and image size, and patch DropKey in."""
        if self.network is not None:
            return
        data = self.data
        size = data.preprocessing.image_size
        # Weights that a checkpoint replaces are not fetched.
        pretrained = self.pretrained and self.trainer.ckpt_path is None
        num_classes = len(data.class_names)
        self.network = create_model(
            self.model_name, num_classes=num_classes, image_size=size, pretrained=pretrained, model_args=self.model_args
        )
        if self.dropkey is not None:
            images = torch.empty(2, 3, size, size, device="meta")
            with self.trainer.profiler.profile("apply_dropkey"):  # type: ignore[attr-defined]  # Lightning sets it
                self.dropkey_plan = apply_dropkey(self.network, self.dropkey, example_inputs=(images,))
        if self.compiled and self.trainer.training:  # a few images are classified before a compiler is done
            self.network.compile()  # in place: the names of the weights stay
        for stage in ("train", "val", "test"):
            self.metrics[f"{stage}_metrics"] = self.create_metrics(stage, num_classes)
        sum_dtype = torch.float32 if self.trainer.strategy.root_device.type == "mps" else torch.float64
        for stage in ("val", "test"):
            self.metrics[f"{stage}_loss"] = MeanLoss(sum_dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits.

        Args:
            images: (B, 3, height, width), normalised.

        Returns:
            (B, K).
        """
        assert self.network is not None, "configure_model comes first"
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(images, 0)  # one graph, whatever the size of the last batch
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Loss of one batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, _batch_index: int) -> None:
        """Metrics of one batch."""
        self._step(batch, "val")

    def test_step(self, batch: Batch, _batch_index: int) -> None:
        """Metrics of one batch."""
        self._step(batch, "test")

    def predict_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Class probabilities (B, K)."""
        return self.probabilities(self(batch["image"]))

    def probabilities(self, logits: Tensor) -> Tensor:
        """What prediction gives for logits (B, K), in [0, 1]."""
        return logits.float().softmax(-1)

    def create_metrics(self, stage: str, num_classes: int) -> MetricCollection:
        """The metrics of train, val or test."""
        return classification_metrics(stage, num_classes)

    def loss(self, logits: Tensor, labels: Tensor, *, training: bool) -> Tensor:
        """Mean loss () of logits (B, K)."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing if training else 0.0)

    def _step(self, batch: Batch, stage: str) -> Tensor:
        logits, labels = self(batch["image"]), batch["label"]
        kept = counted(batch)
        if len(kept) < len(labels):
            logits, labels = logits[kept], labels[kept]
        training = stage == "train"
        # Without images it is 0 and so is its gradient: all processes must go backward
        loss = self.loss(logits, labels, training=training) if kept else logits.sum()
        metrics = self.metrics[f"{stage}_metrics"]
        if kept:
            metrics.update(logits.detach(), labels)  # type: ignore[operator]  # a MetricCollection
        if training:
            # Without prog_bar, for which Lightning would read the values at every step and wait for the device
            self.log("train/loss", loss, batch_size=len(labels))
        else:
            mean_loss = self.metrics[f"{stage}_loss"]
            mean_loss.update(loss, len(kept))  # type: ignore[operator]  # a Metric
            self.log(f"{stage}/loss", mean_loss)  # type: ignore[arg-type]  # a Metric
        if not training or self._epoch_logged != self.current_epoch:  # Lightning computes them at the epoch's end, from here on
            self.log_dict(metrics, on_step=False, on_epoch=True)  # type: ignore[arg-type]  # a MetricCollection
            self._epoch_logged = self.current_epoch if training else self._epoch_logged
        return loss

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning takes many forms
        """AdamW with layer-wise learning rates, and timm's cosine schedule per step."""
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise InputError(
                f"the trainer options give {steps} optimizer steps: give --trainer.max_epochs or --trainer.max_steps, 1 or more"
            )
        assert self.network is not None, "configure_model comes first"
        optimizer = create_adamw(
            self.network, lr=self.learning_rate, weight_decay=self.weight_decay, layer_decay=self.layer_decay, fused=self.fused
        )
        num_groups, saved = len(optimizer.param_groups), self._num_saved_groups
        if saved not in (None, num_groups):
            raise InputError(
                f"the checkpoint's optimizer has {saved} groups of weights, layer_decay {self.layer_decay:g} gives "
                f"{num_groups}: leave out --model.layer_decay and --model.pretrained to take the checkpoint's"
            )
        scheduler = create_cosine(optimizer, lr=self.learning_rate, steps=int(steps), warmup_share=self.warmup_share)
        self._asked = AskedOptions(optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def fused(self) -> bool:
        """Whether AdamW runs as one kernel: where torch has it; Lightning clips no gradients before it in mixed precision."""
        clips = bool(self.trainer.gradient_clip_val) and self.trainer.precision.endswith("-mixed")
        on_device = self.trainer.strategy.root_device.type in ("cpu", "cuda", "mps")
        return on_device and self.trainer.precision != "16-mixed" and not clips

    @property
    def data(self) -> Any:  # noqa: ANN401 - any LightningDataModule with class_names, preprocessing and batch_size
        """The trainer's data."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it

    @property
    def learning_rate(self) -> float:
        """The learning rate after warm-up, for the number of images in one optimizer step."""
        if self.lr is not None:
            return self.lr
        data = self.data
        images = data.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size
        return BASE_LR * float(images) / IMAGES_PER_BASE_STEP

    def weights_line(self) -> tuple[str, str]:
        """The weights that training starts from, as (name, text): known before anything is fetched."""
        if self.trainer.ckpt_path is not None:
            return "weights", str(self.trainer.ckpt_path)
        return "weights", describe_weights(self.model_name, self.model_args) if self.pretrained else "from scratch"

    def plan_lines(self) -> list[tuple[str, str]]:
        """What a user should know before training, as (name, text): network, weights, DropKey, learning rate."""
        assert self.network is not None, "configure_model comes first"
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        lines = [("model", f"{self.model_name}, {parameters / 1e6:.2f} M parameters")]
        size = self.data.preprocessing.image_size
        native = image_config(self.model_name).image_size
        if self.pretrained and size != native:
            lines.append(("", f"position embeddings of {native} × {native} images are resampled to {size} × {size}"))
        dropkey = "none" if self.dropkey_plan is None else str(self.dropkey_plan)
        optimizer = f"AdamW, lr {self.learning_rate:.3g}, layer decay {self.layer_decay:g}, weight decay {self.weight_decay:g}"
        best = "the checkpoint with the highest val/balanced_acc, the mean over classes (val/acc1 where they are even)"
        lines += [("DropKey", dropkey), ("optimizer", optimizer), ("best", best)]
        return [*lines, ("compile", "the first step and the first validation take a minute or so")] if self.compiled else lines

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:  # noqa: ANN401 - timm's schedulers are not torch's
        """Timm's schedulers count steps themselves; others, such as stochastic weight averaging's, are Lightning's to call."""
        if isinstance(scheduler, Scheduler):
            scheduler.step_update(self.global_step)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add, as plain data, all that prediction needs besides the weights."""
        checkpoint.setdefault("dropkey", {}).update(self.describe())

    def on_train_start(self) -> None:
        """Let a resumed run go on by the rate, schedule and decay that are asked for now, not by the checkpoint's."""
        if self.trainer.ckpt_path is not None and self._asked is not None:
            self._asked.restore(self.lr_schedulers(), self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another network."""
        check_same_network(checkpoint, self.describe(), self.state_dict())
        self._num_saved_groups = next((len(state["param_groups"]) for state in checkpoint.get("optimizer_states") or []), None)

    def describe(self) -> dict[str, Any]:
        """What the network is and expects, as plain data."""
        return describe(
            model_name=self.model_name,
            model_args=self.model_args,
            class_names=list(self.data.class_names),
            preprocessing=self.data.preprocessing,
            dropkey=self.dropkey,
        )


def _check(name: str, value: float | None, accepted: bool, expected: str) -> None:
    if not accepted:
        raise InputError(f"{name} is {value!r}; expected {expected}; give --model.{name}")
