"""The paper's configurations: what they promise in their heads, where DropKey acts in them, and one real step of each."""

import math
import re
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
import yaml
from torch import nn

from dropkey_cli.cli import main
from dropkey_cli.commands.recipes import find_recipe, recipes
from dropkey_cli.errors import InputError
from dropkey_cli.method.schedule import layer_ratios
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.models.factory import create_model
from dropkey_cli.patching.apply import apply_dropkey
from tests.data.formats import write_cifar10, write_folder

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


class Published(NamedTuple):
    """What the authors of a network write in README and training script."""

    images_per_step: int
    epochs: int
    warmup_epochs: int
    lr: float
    weight_decay: float
    drop_path: float
    blocks: list[str]  # the layers with DropKey, counted by hand


def blocks(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{number}.attn" for number in range(count)]


# VOLO numbers its stages with the downsampling between the first two: 0 outlooks, 1 samples, 2 to 4 attend
VOLO_D1 = [*blocks("network.2", 4), *blocks("network.3", 8), *blocks("network.4", 2), *blocks("post_network", 2)]
VOLO_D2 = [*blocks("network.2", 4), *blocks("network.3", 10), *blocks("network.4", 4), *blocks("post_network", 2)]
PUBLISHED = {
    "cifar_t2t_vit_19": Published(512, 300, 10, 5e-4, 0.065, 0.1, blocks("blocks", 19)),
    "cifar_volo_d1": Published(512, 300, 20, 1.6e-3 / 2, 0.05, 0.1, VOLO_D1),
    "imagenet_ceit_small": Published(4 * 256, 300, 5, 5e-4 * 1024 / 512, 0.05, 0.1, blocks("blocks", 12)),
    "imagenet_deit_base": Published(16 * 64, 300, 5, 5e-4 * 1024 / 512, 0.05, 0.1, blocks("blocks", 12)),
    "imagenet_t2t_vit_14": Published(8 * 64, 310, 10, 5e-4, 0.05, 0.1, blocks("blocks", 14)),
    "imagenet_t2t_vit_19": Published(8 * 64, 310, 10, 5e-4, 0.065, 0.1, blocks("blocks", 19)),
    "imagenet_volo_d1": Published(8 * 128, 310, 20, 1.6e-3, 0.05, 0.1, VOLO_D1),
    "imagenet_volo_d2": Published(8 * 128, 310, 20, 1e-3, 0.05, 0.2, VOLO_D2),
}
RATIOS = {
    "cifar_t2t_vit_19": 0.3,
    "cifar_volo_d1": 0.3,
    "imagenet_ceit_small": 0.05,
    "imagenet_deit_base": 0.1,
    "imagenet_t2t_vit_14": 0.05,
    "imagenet_t2t_vit_19": 0.1,
    "imagenet_volo_d1": 0.05,
    "imagenet_volo_d2": 0.05,
}
ATTENTION_DROPOUT = "--model.dropkey null --model.model_args '{attn_drop_rate: "


def head(config: Path) -> str:
    """The comment at the beginning, as one line."""
    lines = config.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


@cache
def parsed(name: str, *words: str) -> Any:  # noqa: ANN401 - YAML
    """What a recipe says after the command line has read it; tests only read it."""
    with redirect_stdout(StringIO()) as out:
        assert main(["fit", "--config", str(CONFIGS[name]), *words, "--print_config"]) == 0
    return yaml.safe_load(out.getvalue())


def built(options: Any) -> nn.Module:  # noqa: ANN401 - YAML
    """A recipe's network, without weights."""
    model, size = options["model"]["init_args"], options["data"]["init_args"]["image_size"]
    with torch.device("meta"):
        return create_model(
            model["model_name"], num_classes=10, image_size=size, pretrained=False, model_args=model["model_args"]
        )


def settings_of(options: Any, **changed: Any) -> DropKeySettings:  # noqa: ANN401 - YAML
    """A recipe's DropKey."""
    return DropKeySettings(**{**options["model"]["init_args"]["dropkey"], **changed})


def planned_ratios(name: str, **changed: Any) -> dict[str, float]:  # noqa: ANN401 - any settings
    """The ratio of each layer with DropKey, in order."""
    size = parsed(name)["data"]["init_args"]["image_size"]
    images = torch.empty(2, 3, size, size, device="meta")
    plan = apply_dropkey(built(parsed(name)), settings_of(parsed(name), **changed), example_inputs=(images,))
    return {layer.name: layer.ratio for layer in plan.layers}


def test_the_group_is_listed_together_and_found_by_name() -> None:
    assert set(PUBLISHED) == set(CONFIGS)
    names = [recipe.name for recipe in recipes()]
    first = names.index(f"paper/{next(iter(CONFIGS))}")
    assert names[first : first + len(CONFIGS)] == [f"paper/{name}" for name in CONFIGS]
    recipe = find_recipe("paper/imagenet_volo_d1")
    assert recipe is not None
    assert recipe.path == CONFIGS["imagenet_volo_d1"]
    assert 'configs/paper" = ["configs/paper/*.yaml"]' in (FOLDER.parents[1] / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_dropkey_acts_in_the_layers_counted_by_hand(name: str) -> None:
    planned = planned_ratios(name)
    assert [*planned] == PUBLISHED[name].blocks
    ratios = [*planned.values()]
    assert ratios[0] == pytest.approx(RATIOS[name])
    assert ratios[-1] == 0
    assert sum(ratios) / len(ratios) == pytest.approx(RATIOS[name] / 2)
    assert ratios == sorted(ratios, reverse=True)
    counted = [
        int(number) for number in re.findall(r"(\d+) (?:class )?blocks", head(CONFIGS[name]).split("DropKey acts in")[1])
    ]
    assert sum(counted) == len(ratios)


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_are_the_published_ones(name: str) -> None:
    options, published = parsed(name), PUBLISHED[name]
    model, trainer = options["model"]["init_args"], options["trainer"]
    assert trainer["max_epochs"] == published.epochs
    assert model["warmup_share"] * published.epochs == pytest.approx(published.warmup_epochs, abs=0.02)
    assert model["lr"] == pytest.approx(published.lr)
    assert (model["weight_decay"], model["drop_path"]) == (published.weight_decay, published.drop_path)
    assert (model["optimizer"], model["schedule"], model["schedule_args"]) == ("adamw", "cosine", {"min_lr": 1e-5})
    assert not model["pretrained"]
    assert options["ema"] == (0.99996 if name.startswith("imagenet_t2t") else None)


@pytest.mark.parametrize("name", CONFIGS)
def test_head_has_the_images_per_step_and_says_that_nothing_was_trained(name: str) -> None:
    options, text = parsed(name), head(CONFIGS[name])
    assert "Claim: not trained here." in text
    found = re.search(r"(\d+) GPUs? of (\d+) images, (?:(\d) times for a step: )?([\d,]+) per step", text)
    assert found is not None
    devices, batch_size, times, total = (int((number or "1").replace(",", "")) for number in found.groups())
    assert devices * batch_size * times == total == PUBLISHED[name].images_per_step
    assert options["trainer"]["devices"] == ("auto" if name.startswith("imagenet") else devices)  # CIFAR's step on any machine
    assert options["data"]["init_args"]["batch_size"] == batch_size
    assert options["trainer"]["accumulate_grad_batches"] == times
    if name.startswith("imagenet"):  # one GPU does the same step as all of them
        assert f"--trainer.accumulate_grad_batches {devices} instead of the overlay" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_says_where_it_comes_from(name: str) -> None:
    lines = [line for line in CONFIGS[name].read_text(encoding="utf-8").splitlines() if re.match(r" +\w+: [^#]", line)]
    unexplained = [line for line in lines if not re.search(r"  # (recipe|transfer|T2T|note|paper|ours)\b", line)]
    assert [line.split()[0] for line in unexplained] == (["class_path:", "root:"] if name.startswith("cifar") else [])
    terms = {term for line in lines for term in re.findall(r"  # (recipe|transfer|T2T|note|paper|ours)\b", line)}
    assert all(f"{term}:" in head(CONFIGS[name]) for term in terms)


@pytest.mark.parametrize("name", ["cifar_t2t_vit_19", "cifar_volo_d1"])
def test_the_other_schedules_and_cifar100_are_one_option_away(name: str) -> None:
    for schedule, expected in {"constant": (0.3, 0.3), "increasing": (0.0, 0.3)}.items():
        line = f"fit --config configs/paper/{name}.yaml --data.download true --model.dropkey.schedule {schedule}"
        assert line in head(CONFIGS[name])
        options = parsed(name, "--model.dropkey.schedule", schedule, "--data.root=torch/cifar100")
        ratios = layer_ratios(settings_of(options), len(PUBLISHED[name].blocks))
        assert (ratios[0], ratios[-1]) == pytest.approx(expected)
        assert options["data"]["init_args"]["root"] == "torch/cifar100"


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("imagenet")])
def test_attention_dropout_to_compare_with_is_one_line_away(name: str) -> None:
    rate = head(CONFIGS[name]).split(ATTENTION_DROPOUT)[1].split("}")[0]
    assert float(rate) == RATIOS[name]  # where the paper's table has ratios, both were best at the same
    options = parsed(name, "--model.dropkey=null", f"--model.model_args={{attn_drop_rate: {rate}}}")
    assert options["model"]["init_args"]["dropkey"] is None
    if name.endswith(("_19", "_d2")):
        return  # the network's twin is looked into
    network = built(options)
    for layer in PUBLISHED[name].blocks:
        assert network.get_submodule(f"{layer}.attn_drop").p == float(rate)


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("imagenet_volo_d1", "network.0.*.attn", "OutlookAttention.* predicts its weights from the query alone"),
        ("imagenet_t2t_vit_14", "tokens_to_token.*", "'tokens_to_token.*' matches no attention layer of T2TViT"),
    ],
)
def test_what_makes_or_shifts_tokens_without_keys_cannot_be_included(name: str, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned_ratios(name, include=[pattern])


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Generated pictures in CIFAR-10's files, with checksums of their own, in the default folder."""
    checksums = write_cifar10(tmp_path / "data", {"train": 40, "test": 10})
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, checksums[name])
    meta = dict(torchvision.datasets.CIFAR10.meta, md5=checksums["meta"][0][1])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)


def one_step(name: str, folder: Path) -> dict[str, Any]:
    """The checkpoint after one optimizer step, from as many batches of two images as the recipe accumulates."""
    words = ["--data.batch_size=2", "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    batches = yaml.safe_load(CONFIGS[name].read_text())["trainer"].get("accumulate_grad_batches", 1)
    words += [f"--trainer.limit_train_batches={batches}", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    words += [] if name.startswith("cifar") else [f"--data.root={write_folder(folder / 'imagenet', {'train': 4, 'val': 1})}"]
    assert main(["fit", "--config", f"paper/{name}", *words]) == 0
    checkpoint: dict[str, Any] = torch.load(
        folder / "runs" / name / "version_0" / "checkpoints" / "last.ckpt", weights_only=True
    )
    for file in (folder / "runs").rglob("*.ckpt"):  # up to a gigabyte each
        file.unlink()
    return checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_one_real_step_on_images_of_full_size(
    name: str, tmp_path: Path, cifar10: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = one_step(name, tmp_path)
    assert checkpoint["global_step"] == 1
    optimizer = checkpoint["optimizer_states"][0]
    states = optimizer["state"].values()
    trained = sum(len(group["params"]) for group in optimizer["param_groups"])
    assert len(states) == trained  # every weight has a gradient, as DDP expects
    assert all(math.isfinite(float(state["exp_avg"].abs().max())) for state in states)
    assert sum(bool(state["exp_avg"].any()) for state in states) > 0.9 * trained
    assert checkpoint["dropkey"]["dropkey"]["ratio"] == RATIOS[name]
