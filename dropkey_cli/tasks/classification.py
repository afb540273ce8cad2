"""Image classification: one class per image."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from dropkey_cli.data.dataset import Batch, counted
from dropkey_cli.data.loading import run_seed
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.models.factory import describe_weights, image_config, with_channels
from dropkey_cli.models.loading import taken_line
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.tasks.description import check_same_network, describe
from dropkey_cli.tasks.labels import check_labels
from dropkey_cli.tasks.losses import binary_cross_entropy, class_weights_of, cross_entropy, normalized_sigmoid
from dropkey_cli.tasks.metrics import MeanLoss, classification_metrics
from dropkey_cli.tasks.mixing import BatchMixing
from dropkey_cli.tasks.monte_carlo import MonteCarlo
from dropkey_cli.tasks.network import create_network, prepare_training
from dropkey_cli.tasks.options import check_option, check_share
from dropkey_cli.tasks.plan import loss_lines, mixing_lines, network_line, resampling_lines
from dropkey_cli.tasks.predicting import PredictingModule


class Classification(PredictingModule):
    """A timm vision transformer with DropKey that learns one class per image.

    Attributes:
        monitor: The metric whose highest value marks the best checkpoint.
        monitor_meaning: What it is, for the plan.
        multi_label: Whether an image may have any number of classes, and not exactly one.

    Args:
        model_name: timm's name of the network, with or without a weights' tag, e.g. vit_small_patch16_224; or a model of the
            hub, hf-hub:USER/NAME, or of a folder that dropkey export made, local-dir:FOLDER.
        pretrained: Start from timm's pretrained weights; false trains from scratch.
        model_args: Further arguments of the network's constructor, e.g. {"patch_size": 8}.
        dropkey: How keys are dropped in training; null trains without DropKey.
        drop_path: Stochastic depth in training, the last block's rate; by default the network's own, mostly none.
        patch_drop: Share of the patches left out of each image in training; by default the network's own, none.
        freeze: Weights that are not trained: backbone for all but the classifier, or names such as [patch_embed, blocks.0].
        optimizer: Name of an optimizer of timm or torch, e.g. adamw, lamb, lion, muon, sgd.
        optimizer_args: Further arguments of the optimizer, e.g. {"betas": [0.9, 0.95]}.
        lr: Learning rate after warm-up; by default 5e-4 (right for AdamW) times the images per optimizer step over 256.
        layer_decay: Factor on the learning rate from each layer to the one before it, in (0, 1]; by default 0.75 for
            pretrained weights and 1 from scratch.
        weight_decay: The optimizer's weight decay (SGD takes about 1e-4); biases and norms have none.
        schedule: The learning rate after warm-up; plateau lets it fall when validation does not improve.
        schedule_args: The schedule's own, e.g. {"min_lr": 1e-6} (cosine, poly, wsd, plateau), {"power": 2} (poly),
            {"decay_share": 0.2} (wsd), {"milestones": [0.5, 0.75], "decay_rate": 0.1} (step), {"patience": 5} (plateau).
        warmup_share: Share of all steps in which the learning rate rises linearly, in [0, 1).
        loss: cross_entropy, the default, or bce: one binary cross-entropy per class, as in DeiT III.
        label_smoothing: Part of each label that is spread over all classes evenly in the training loss, in [0, 1).
        class_weights: Weight of each class in the training loss: balanced counts all classes the same, or a list.
        mixup: Alpha of mixup, which blends pairs of images, e.g. 0.8; 0 is off.
        cutmix: Alpha of cutmix, which pastes a part of another image, e.g. 1.0; 0 is off. With both, batches take turns.
        mix_probability: Share of the batches that mixup and cutmix change.
        mix_off_share: Share of all steps, at the end, without mixup and cutmix.
        erase_probability: Share of training images in which a random rectangle becomes noise (random erasing).
        grad_checkpointing: Take less memory and about a third more time: activations are computed twice.
        compile: Compile the network in fit: later steps are faster on a GPU, the first takes a minute or so.
    """

    loss_weights: Tensor | None  # (K,), where classes are weighted
    monitor = "val/balanced_acc"
    monitor_meaning = "the mean over classes (val/acc1 where they are even)"
    multi_label = False

    def __init__(
        self,
        model_name: str = "vit_small_patch16_224",
        *,
        pretrained: bool = True,
        model_args: dict[str, Any] | None = None,
        dropkey: DropKeySettings | None = DropKeySettings(),  # noqa: B008 - frozen
        drop_path: float | None = None,
        patch_drop: float | None = None,
        freeze: Literal["backbone"] | list[str] | None = None,
        optimizer: str = "adamw",
        optimizer_args: dict[str, Any] | None = None,
        lr: float | None = None,
        layer_decay: float | None = None,
        weight_decay: float = 0.05,
        schedule: Literal["cosine", "poly", "wsd", "step", "plateau", "constant"] = "cosine",
        schedule_args: dict[str, Any] | None = None,
        warmup_share: float = 0.1,
        loss: Literal["cross_entropy", "bce"] | None = None,
        label_smoothing: float = 0.1,
        class_weights: Literal["balanced"] | list[float] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        mix_off_share: float = 0.0,
        erase_probability: float = 0.0,
        grad_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.set_optimization(
            optimizer=optimizer,
            optimizer_args=optimizer_args,
            lr=lr,
            layer_decay=layer_decay if layer_decay is not None else (0.75 if pretrained else 1.0),
            weight_decay=weight_decay,
            schedule=schedule,
            schedule_args=schedule_args,
            warmup_share=warmup_share,
        )
        check_share("label_smoothing", label_smoothing)
        for name, rate in (("drop_path", drop_path), ("patch_drop", patch_drop)):
            check_share(name, rate or 0.0)
        check_option("loss", loss, not (self.multi_label and loss == "cross_entropy"), "bce, for several labels per image")
        check_share("mix_off_share", mix_off_share, including_1=True)
        self.model_name = model_name
        self.pretrained = pretrained
        self.model_args = model_args or {}
        self.dropkey = dropkey
        self.drop_path = drop_path
        self.patch_drop = patch_drop
        self.frozen = freeze
        self.loss_name = loss or ("bce" if self.multi_label else "cross_entropy")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.mixing = BatchMixing(mixup, cutmix, mix_probability, erase_probability)
        self.mix_off_share = mix_off_share
        self.grad_checkpointing = grad_checkpointing
        self.compiled = compile
        self.dropkey_plan: DropKeyPlan | None = None
        self.register_buffer("loss_weights", None, persistent=False)
        self.metrics = nn.ModuleDict()
        self._epoch_logged = -1

    def configure_model(self) -> None:
        """Build the network for the data's classes and image size, and patch DropKey in."""
        if self.network is not None:
            return
        data = self.data
        if not self.trainer.predicting:
            check_labels(several=getattr(data, "multi_label", False), takes_several=self.multi_label)
        size, channels = data.preprocessing.image_size, data.preprocessing.channels
        model_args = with_channels(self.model_args, channels)
        # Weights that a checkpoint replaces are not fetched.
        pretrained = self.pretrained and self.trainer.ckpt_path is None
        num_classes = len(data.class_names)
        self.network = create_network(
            self.model_name,
            num_classes=num_classes,
            image_size=size,
            pretrained=pretrained,
            model_args=model_args,
            class_names=list(data.class_names),
            drop_path=self.drop_path,
            patch_drop=self.patch_drop,
        )
        if self.dropkey is not None:
            images = torch.empty(2, channels, size, size, device="meta")
            with self.trainer.profiler.profile("apply_dropkey"):  # type: ignore[attr-defined]  # Lightning sets it
                self.dropkey_plan = apply_dropkey(self.network, self.dropkey, example_inputs=(images,))
        if self.mc_samples:
            self.monte_carlo = MonteCarlo(self.dropkey_plan, self.mc_samples, seed=run_seed(self.trainer))
        if self.trainer.training:
            prepare_training(
                self.network,
                self.model_name,
                frozen=self.frozen,
                grad_checkpointing=self.grad_checkpointing,
                compiled=self.compiled,  # not otherwise: a few images are classified before a compiler is done
            )
            self.loss_weights = class_weights_of(self.class_weights, data)
        for stage in ("train", "val", "test"):
            self.metrics[f"{stage}_metrics"] = self.create_metrics(stage, num_classes)
        sum_dtype = torch.float32 if self.trainer.strategy.root_device.type == "mps" else torch.float64
        for stage in ("val", "test"):
            self.metrics[f"{stage}_loss"] = MeanLoss(sum_dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits.

        Args:
            images: (B, C, height, width), normalised.

        Returns:
            (B, K).
        """
        assert self.network is not None, "configure_model comes first"
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(images, 0)  # one graph, whatever the size of the last batch
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Loss of one batch, erased and mixed."""
        if self.mixing.acts:
            mix = not self.mix_off_share or self.global_step < (1 - self.mix_off_share) * self.num_steps
            batch = self.mixing(batch, num_classes=len(self.data.class_names), mix=mix)
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Metrics of one batch; the class probabilities (B, K) of its images that count."""
        return self._step(batch, "val")

    def test_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Metrics of one batch; the class probabilities (B, K) of its images that count."""
        return self._step(batch, "test")

    def probabilities(self, logits: Tensor) -> Tensor:
        """What prediction gives for logits (B, K), in [0, 1]."""
        return normalized_sigmoid(logits) if self.loss_name == "bce" else logits.float().softmax(-1)

    def scores(self, logits: Tensor) -> Tensor:
        """What is averaged over masks before the loss, in [0, 1]: with bce of each class by itself, as the loss takes it."""
        return logits.float().sigmoid() if self.loss_name == "bce" else self.probabilities(logits)

    def logits_of(self, scores: Tensor) -> Tensor:
        """Logits (B, K) whose `scores` are these; finite also where a class has no chance, or no other has."""
        least, most = torch.finfo(torch.float32).tiny, 1 - 2**-24
        logits = scores.clamp(min=least).log()
        return (logits - torch.log1p(-scores.clamp(max=most)) if self.loss_name == "bce" else logits).float()

    def create_metrics(self, stage: str, num_classes: int) -> MetricCollection:
        """The metrics of train, val or test."""
        return classification_metrics(stage, num_classes)

    def loss(self, logits: Tensor, labels: Tensor, *, training: bool) -> Tensor:
        """Mean loss () of logits (B, K) for class indices (B,) or shares of the classes (B, K)."""
        function = binary_cross_entropy if self.loss_name == "bce" else cross_entropy
        weights = self.loss_weights if training else None
        return function(logits, labels, smoothing=self.label_smoothing if training else 0.0, weights=weights)

    def metric_labels(self, labels: Tensor) -> Tensor:
        """The labels as the metrics take them: where classes are mixed, the index of the one with the largest share."""
        return labels.argmax(1) if labels.ndim == 2 else labels

    def _step(self, batch: Batch, stage: str) -> Tensor:
        logits, labels = self.logits(batch), batch["label"]
        kept = counted(batch)
        if len(kept) < len(labels):
            logits, labels = logits[kept], labels[kept]
        training = stage == "train"
        # Without images it is 0 and so is its gradient: all processes must go backward
        loss = self.loss(logits, labels, training=training) if kept else logits.sum()
        metrics = self.metrics[f"{stage}_metrics"]
        if kept:
            metrics.update(logits.detach(), self.metric_labels(labels))  # type: ignore[operator]  # a MetricCollection
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
        return loss if training else self.probabilities(logits)

    def weights_line(self) -> tuple[str, str]:
        """The weights that training starts from, as (name, text): known before anything is fetched."""
        if self.trainer.ckpt_path is not None:
            return "weights", str(self.trainer.ckpt_path)
        return "weights", describe_weights(self.model_name, self.model_args) if self.pretrained else "from scratch"

    def plan_lines(self) -> list[tuple[str, str]]:
        """What a user should know before training, as (name, text): network, weights, DropKey, recipe."""
        assert self.network is not None, "configure_model comes first"
        lines = [network_line(self.network, self.model_name, self.frozen)]
        lines += [("", line)] if (line := taken_line(self.network)) else []
        native = image_config(self.model_name, self.model_args).image_size
        lines += resampling_lines(self.data.preprocessing.image_size, native) if self.pretrained else []
        lines.append(("DropKey", "none" if self.dropkey_plan is None else str(self.dropkey_plan)))
        lines += self.optimization_lines()
        lines += loss_lines(self.loss_name, self.label_smoothing, self.loss_weights, self.data.class_names)
        lines += mixing_lines(self.mixing, self.mix_off_share)
        if self._trainer is None or self._trainer.limit_val_batches != 0:
            lines.append(("best", f"the checkpoint with the highest {self.monitor}, {self.monitor_meaning}"))
        return [*lines, ("compile", "the first step and the first validation take a minute or so")] if self.compiled else lines

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add, as plain data, all that prediction needs besides the weights."""
        checkpoint.setdefault("dropkey", {}).update(self.describe())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another network."""
        check_same_network(checkpoint, self.describe(), self.state_dict())
        self._saved_groups = next((state["param_groups"] for state in checkpoint.get("optimizer_states") or []), None)

    def describe(self) -> dict[str, Any]:
        """What the network is and expects, as plain data."""
        return describe(
            model_name=self.model_name,
            model_args=with_channels(self.model_args, self.data.preprocessing.channels),
            class_names=list(self.data.class_names),
            preprocessing=self.data.preprocessing,
            dropkey=self.dropkey,
        )
