import pytest

from dropkey_cli.data.named.named_set import Picked, choose_splits, numbered, numbers
from dropkey_cli.errors import InputError


def test_names_are_numbered_in_order_of_text() -> None:
    names = numbered("cifar10/train", 1201)
    assert names[12] == "cifar10/train/000012"
    assert names == sorted(names)


def test_a_picked_position_reads_its_image() -> None:
    assert [Picked(str, [4, 2])(place) for place in (0, 1)] == ["4", "2"]


@pytest.mark.parametrize(
    ("known", "asked", "chosen"),
    [
        (["train", "test"], None, {"train": "train", "test": "test"}),
        (["Validation", "train", "other"], None, {"val": "Validation", "train": "train"}),
        (["training", "dev"], {"train": "training", "val": "dev"}, {"train": "training", "val": "dev"}),
        (["train"], {"train": "train[10:]", "val": "train[:10]"}, {"train": "train[10:]", "val": "train[:10]"}),
    ],
)
def test_splits_are_chosen_by_name_or_as_asked(known: list[str], asked: dict[str, str] | None, chosen: dict[str, str]) -> None:
    assert choose_splits("hfds/x", known, asked) == chosen


@pytest.mark.parametrize(
    ("known", "asked", "message"),
    [
        (["a", "b"], None, r"^'hfds/x' has the splits 'a', 'b'; expected train, val or test among them; .*'\{train: a\}'"),
        ([], None, r"'\{train: NAME\}'"),
        (["val", "valid"], None, "has both the splits 'val' and 'valid'; expected one for val"),
        (["train"], {"training": "train"}, "splits has 'training'; expected train, val and test"),
        (["train", "test"], {"test": "tset"}, "'hfds/x' has no split 'tset'; expected one of train, test.*did you mean 'test'"),
    ],
)
def test_splits_that_are_not_clear_are_refused(known: list[str], asked: dict[str, str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_splits("hfds/x", known, asked)


def test_classes_that_are_numbers() -> None:
    assert numbers("x", 2) == ["0", "1", "2"]
    with pytest.raises(InputError, match="'x' has the class number 1000000; expected numbers below 1000000"):
        numbers("x", 1_000_000)
