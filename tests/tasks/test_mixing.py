import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.data.dataset import Batch
from dropkey_cli.tasks.mixing import BatchMixing, erased

SIZE = 16


def numbered(count: int, *, unreadable: tuple[int, ...] = (), padding: int = 0) -> Batch:
    """Images whose every pixel is their number, from 1, each of a class of its own."""
    images = torch.arange(1.0, count + 1).reshape(-1, 1, 1, 1).expand(count, 3, SIZE, SIZE).clone()
    labels = torch.arange(count)
    labels[count - padding :] = -1
    paths = [str(number) for number in range(count - padding)] + [""] * padding
    errors = ["broken" if number in unreadable else "" for number in range(count)]
    return Batch(image=images, label=labels, index=torch.arange(count), path=paths, error=errors)


def seed_as_in_a_run(*, rank: int = 0, batch: int = 0) -> None:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(current_epoch=0, global_rank=rank, strategy=strategy)
    module: Any = None
    BatchSeeds(0).on_train_batch_start(trainer, module, None, batch)


def shares_by_hand(image: Tensor, count: int) -> list[float]:
    """Which share of an image's pixels has the value of each number."""
    pixels = Counter(image[0].flatten().tolist())
    assert set(pixels) <= {float(number) for number in range(1, count + 1)}
    return [pixels[float(number)] / SIZE**2 for number in range(1, count + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_mixup_mixes_labels_as_it_mixes_images(seed: int) -> None:
    torch.manual_seed(seed)
    batch = numbered(6)
    mixed = BatchMixing(mixup=1.0)(batch, num_classes=6)
    values = torch.arange(1.0, 7.0)
    assert mixed["label"].shape == (6, 6)
    torch.testing.assert_close(mixed["label"].sum(1), torch.ones(6))
    torch.testing.assert_close(mixed["label"].sum(0), torch.ones(6))  # each image is once one part and once the other
    torch.testing.assert_close(mixed["image"][:, 0, 0, 0], mixed["label"] @ values)
    assert (mixed["image"] == mixed["image"][:, :1, :1, :1]).all()
    assert (mixed["label"].diagonal() > 0).all()  # each stays in its place
    assert batch["image"][3, 0, 0, 0] == 4  # the batch itself is left alone


def test_an_image_is_mixed_with_any_other() -> None:
    partners = set()
    for seed in range(40):  # not only with its neighbour, which may be a copy of it
        torch.manual_seed(seed)
        partners |= set(BatchMixing(mixup=1.0)(numbered(6), num_classes=6)["label"][0].nonzero().flatten().tolist())
    assert partners == set(range(6))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_labels_are_a_count_of_the_pixels(seed: int) -> None:
    torch.manual_seed(seed)
    mixed = BatchMixing(cutmix=1.0)(numbered(6), num_classes=6)
    for image, label in zip(mixed["image"], mixed["label"], strict=True):
        assert label.tolist() == pytest.approx(shares_by_hand(image, 6), abs=1e-6)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_shares_are_mixed_as_they_are(options: dict[str, float]) -> None:
    batch = numbered(4)
    shares = torch.rand(4, 3)
    torch.manual_seed(5)
    mixed = BatchMixing(**options)({**batch, "label": shares}, num_classes=3)
    torch.manual_seed(5)
    places = BatchMixing(**options)(batch, num_classes=4)["label"]
    torch.testing.assert_close(mixed["label"], places @ shares)


def test_with_both_each_takes_about_half_of_the_batches() -> None:
    mixing = BatchMixing(mixup=1.0, cutmix=1.0)
    images = [mixing(numbered(4), num_classes=4)["image"] for _ in range(400)]
    blended = sum(not (image == image.round()).all().item() for image in images)
    assert 160 < blended < 240


def test_mix_probability_is_the_share_of_the_batches_that_are_mixed() -> None:
    mixing = BatchMixing(mixup=1.0, mix_probability=0.25)
    mixed = sum(mixing(numbered(4), num_classes=4)["label"].ndim == 2 for _ in range(400))
    assert 70 < mixed < 130


def test_what_does_nothing_gives_the_batch_and_draws_nothing() -> None:
    batch, before = numbered(4), torch.get_rng_state()
    for mixing in (BatchMixing(), BatchMixing(mix_probability=0.5), BatchMixing(mixup=1.0, mix_probability=0.0)):
        assert not mixing.acts
        result = mixing(batch, num_classes=4)
        assert result["image"] is batch["image"]
        assert result["label"] is batch["label"]
    assert BatchMixing(cutmix=1.0)(batch, num_classes=4, mix=False)["label"] is batch["label"]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"erase_probability": 1.0}])
def test_no_image_gets_a_part_of_padding_or_of_what_cannot_be_read(options: dict[str, float]) -> None:
    batch = numbered(7, unreadable=(1, 3), padding=2)
    kept = [0, 2, 4]
    parts = {key: batch[key][kept] for key in ("image", "label", "index")}
    alone = Batch(**parts, path=[batch["path"][place] for place in kept], error=[""] * 3)  # type: ignore[typeddict-item]
    torch.manual_seed(3)
    result = BatchMixing(**options)(batch, num_classes=7)
    torch.manual_seed(3)
    expected = BatchMixing(**options)(alone, num_classes=7)
    assert torch.equal(result["image"][kept], expected["image"])
    assert torch.equal(result["label"][kept], expected["label"])
    for place in (1, 3, 5, 6):
        assert torch.equal(result["image"][place], batch["image"][place])
    assert len(result["label"]) == 7


def test_a_batch_without_images_is_left_alone() -> None:
    batch = numbered(2, padding=2)
    assert BatchMixing(mixup=1.0, erase_probability=1.0)(batch, num_classes=2) is batch


def test_one_image_alone_is_mixed_with_itself() -> None:
    mixed = BatchMixing(mixup=1.0)(numbered(1), num_classes=1)
    torch.testing.assert_close(mixed["image"], numbered(1)["image"])
    torch.testing.assert_close(mixed["label"], torch.ones(1, 1))


EVERYTHING = BatchMixing(mixup=0.8, cutmix=1.0, erase_probability=0.5)


def test_a_batch_is_mixed_alike_again_and_otherwise_in_another_process_or_step() -> None:
    def images(**place: int) -> Tensor:
        seed_as_in_a_run(**place)
        random.random()  # whatever else draws
        return EVERYTHING(numbered(8), num_classes=8)["image"]

    first = images()
    assert torch.equal(images(), first)
    assert not torch.equal(images(rank=1), first)
    assert not torch.equal(images(batch=1), first)


def test_pythons_random_numbers_go_on_where_they_were() -> None:
    random.seed(7)
    expected = random.random()
    random.seed(7)
    EVERYTHING(numbered(8), num_classes=8)
    assert random.random() == expected


def test_no_value_is_read_from_the_device() -> None:
    batch = numbered(8)
    on_device = {**batch, "image": batch["image"].to("meta"), "label": batch["label"].to("meta").float().expand(8, 8)}
    for _ in range(8):  # a meta tensor has no values: to read one is an error
        mixed = EVERYTHING(on_device, num_classes=8)  # type: ignore[arg-type]  # a batch
        assert mixed["image"].device.type == mixed["label"].device.type == "meta"


# Erasing


def test_erasing_replaces_one_rectangle_by_noise_in_its_share_of_the_images() -> None:
    images = torch.full((600, 3, SIZE, SIZE), 9.0)
    result = erased(images, 0.25)
    changed = (result != 9.0).any(1)  # (B, height, width)
    hit = changed.flatten(1).any(1)
    assert 110 < int(hit.sum()) < 190
    for image in changed[hit]:
        rows, columns = image.any(1), image.any(0)
        assert int(image.sum()) == int(rows.sum()) * int(columns.sum())  # a full rectangle
    area = changed[hit].float().mean((1, 2))
    assert float(area.min()) > 0.005
    assert float(area.max()) < 0.4
    noise = result[result != 9.0]
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert (images == 9.0).all()


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_none_or_all_images_are_erased(probability: float, share: float) -> None:
    batch = BatchMixing(erase_probability=probability)(numbered(20), num_classes=20)
    hit = (batch["image"] != numbered(20)["image"]).flatten(1).any(1)
    assert float(hit.float().mean()) == share
    assert batch["label"].ndim == 1
