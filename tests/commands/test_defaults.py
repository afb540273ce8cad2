import re
from pathlib import Path
from typing import Any

import pytest

from dropkey_cli.commands.defaults import (
    DATA_BY_ROOT,
    DEFAULT_DATA,
    DEFAULT_TASK,
    MULTI_LABEL_TASK,
    checkpoint_defaults,
    data_class,
    default_classes,
    named_by_root,
)
from dropkey_cli.errors import InputError

DESCRIPTION: dict[str, Any] = {
    "config": {
        "model": {"class_path": "dropkey_cli.tasks.classification.Classification", "init_args": {"lr": 1.0}},
        "data": {"class_path": "dropkey_cli.data.digits.Digits", "init_args": {"degrees": 3.0}},
    }
}


def test_a_checkpoint_gives_model_and_data_and_to_predict_the_model() -> None:
    assert checkpoint_defaults(DESCRIPTION, "test", []) == DESCRIPTION["config"]
    assert checkpoint_defaults(DESCRIPTION, "predict", []) == {"model": DESCRIPTION["config"]["model"]}


@pytest.mark.parametrize("part", ["model", "data"])
def test_a_checkpoint_imports_only_our_classes_unasked(part: str) -> None:
    config = {**DESCRIPTION["config"], part: {"class_path": "evil.Module"}}
    with pytest.raises(InputError, match=rf"^the checkpoint wants the class 'evil.Module', .* add --{part} evil.Module$"):
        checkpoint_defaults({"config": config}, "test", ["--ckpt_path=x"])
    assert checkpoint_defaults({"config": config}, "test", [f"--{part}", "evil.Module"]) == config


@pytest.mark.parametrize(
    ("words", "trusted"),
    [
        (["--model", "evil.Module"], True),
        (["--model=evil.Module"], True),
        (["--model.class_path", "evil.Module"], True),
        (["--model.class_path=evil.Module"], True),
        (["--ckpt_path", "evil.Module"], False),
        (["--ckpt_path=evil.Module"], False),
        (["--ckpt_path", "runs/evil.Module.ckpt"], False),
        (["--model", "my.evil.Module"], False),
        (["--data", "evil.Module"], False),
        (["evil.Module"], False),
    ],
    ids=str,
)
def test_only_the_option_itself_says_that_a_class_is_trusted(words: list[str], trusted: bool) -> None:
    config = {**DESCRIPTION["config"], "model": {"class_path": "evil.Module"}}
    if trusted:
        assert checkpoint_defaults({"config": config}, "predict", words) == {"model": config["model"]}
    else:
        with pytest.raises(InputError, match=r"wants the class 'evil.Module'"):
            checkpoint_defaults({"config": config}, "predict", words)


@pytest.mark.parametrize(
    ("init_args", "option"),
    [
        ({"dropkey": {"class_path": "evil.Settings"}}, "model.init_args.dropkey.class_path"),
        ({"model_args": {"a": [{"class_path": "evil.Settings"}]}}, "model.init_args.model_args.a.class_path"),
    ],
)
def test_classes_inside_options_are_imported_no_sooner(init_args: dict[str, Any], option: str) -> None:
    config = {"model": {**DESCRIPTION["config"]["model"], "init_args": init_args}}
    with pytest.raises(InputError, match=rf"wants the class 'evil.Settings', .* add --{option} evil.Settings$"):
        checkpoint_defaults({"config": config}, "predict", [])


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("model", "dropkey", "evil.Settings"),
        ("model", "dropkey", {"ratio": None}),
        ("model", "dropkey", {"raito": 0.1}),
        ("model", "lr", "0.1"),
        ("model", "lr", True),
        ("model", "model_name", None),
        ("model", "model_args", [1]),
        ("model", "pretrained", 1),
        ("data", "image_size", 1.5),
        ("data", "crop_scale", [0.5]),
        ("data", "class_names", "ab"),
        ("data", "class_names", [1]),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(part: str, name: str, value: object) -> None:
    classes = {"model": DEFAULT_TASK, "data": DEFAULT_DATA}
    config = {
        key: {"class_path": class_path, "init_args": {name: value} if key == part else {}}
        for key, class_path in classes.items()
    }
    with pytest.raises(
        InputError, match=rf"^the checkpoint is damaged, its {part} has {name} {re.escape(repr(value))}: give one"
    ):
        checkpoint_defaults({"config": config}, "test", [])


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", "x"), ("mean", ["x"]), ("std", 3), ("crop_pct", True), ("crop_mode", 3)]
)
def test_preprocessing_that_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    good = {
        "image_size": 8,
        "mean": [0.5, 0, 1],
        "std": [1.0, 1.0, 1.0],
        "interpolation": "box",
        "crop_pct": 1,
        "crop_mode": None,
    }
    checkpoint_defaults({**DESCRIPTION, "preprocessing": good}, "test", [])
    with pytest.raises(InputError, match=rf"its preprocessing has {name} {re.escape(repr(value))}: give one"):
        checkpoint_defaults({**DESCRIPTION, "preprocessing": {**good, name: value}}, "test", [])


@pytest.mark.parametrize("class_path", ["dropkey_cli.nothing.Model", "dropkey_cli.cli.main", "dropkey_cli.Model"])
def test_a_class_of_ours_that_is_not_there_is_named(class_path: str) -> None:
    config = {"model": {"class_path": class_path, "init_args": {"a": 1}}}
    with pytest.raises(InputError, match=rf"^the checkpoint wants the class '{class_path}', which this version of dropkey"):
        checkpoint_defaults({"config": config}, "predict", [])


TABLE = "dropkey_cli.data.table.ImageTable"


def test_a_root_names_its_class_by_a_pattern(tmp_path: Path) -> None:
    assert {data_class(name) for name in ("labels.csv", "a b/LABELS.CSV", "x.tsv", "x.jsonl", "~/x.parquet")} == {TABLE}
    assert {data_class(name) for name in (None, "", "photos", "csv", "x.csv/photos", "x.csv.zip")} == {DEFAULT_DATA}
    (tmp_path / "photos.csv").mkdir()
    assert data_class(str(tmp_path / "photos.csv")) == DEFAULT_DATA  # a folder, whatever its name


def test_the_first_pattern_that_fits_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_BY_ROOT, "sets/*", "a.Sets")
    assert data_class("sets/cifar10") == "a.Sets"
    assert data_class("sets/x.csv") == TABLE


def test_prediction_takes_files_and_folders_whatever_they_are_called() -> None:
    words = ["--data.root", "labels.csv"]
    assert default_classes("fit", words) == {"model": DEFAULT_TASK, "data": TABLE}
    assert default_classes("predict", words) == {"model": DEFAULT_TASK, "data": DEFAULT_DATA}


@pytest.mark.parametrize(
    ("trained_on", "given", "read_by", "kept"),
    [
        (DEFAULT_DATA, "--data.root=other.csv", TABLE, {"batch_size": 7, "split_seed": 3}),
        (DEFAULT_DATA, "--data.test_root=other.csv", TABLE, {"batch_size": 7, "split_seed": 3}),
        (TABLE, "--data.root=photos", DEFAULT_DATA, {"batch_size": 7, "split_seed": 3}),
        (TABLE, "--data.root=other.tsv", TABLE, {"root": "old", "batch_size": 7, "split_seed": 3, "label_column": "a"}),
        (TABLE, "--data.batch_size=5", TABLE, {"root": "old", "batch_size": 7, "split_seed": 3, "label_column": "a"}),
        (
            "dropkey_cli.data.digits.Digits",
            "--data.root=x.csv",
            "dropkey_cli.data.digits.Digits",
            {"root": "old", "degrees": 1.0},
        ),
    ],
)
def test_the_kind_of_the_given_root_wins_over_the_checkpoints(
    trained_on: str, given: str, read_by: str, kept: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"root": "old", "batch_size": 7, "split_seed": 3}
    options |= {"label_column": "a"} if trained_on == TABLE else {}
    options = {"root": "old", "degrees": 1.0} if "Digits" in trained_on else options
    config = {**DESCRIPTION["config"], "data": {"class_path": trained_on, "init_args": options}}
    assert checkpoint_defaults({"config": config}, "test", [given])["data"] == {"class_path": read_by, "init_args": kept}


@pytest.fixture
def config_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, class_path in (("folder", DEFAULT_DATA), ("table", TABLE), ("digits", "dropkey_cli.data.digits.Digits")):
        Path(f"{name}.yaml").write_text(f"data: {{class_path: {class_path}, init_args: {{root: old}}}}")
    Path("root.yaml").write_text("data: {root: new.csv, label_separator: '|'}")


@pytest.mark.usefixtures("config_files")
@pytest.mark.parametrize(
    ("configs", "words", "named"),
    [
        (["folder"], ["--data.root=new.csv"], TABLE),
        (["folder"], ["--data.val_root", "new.csv"], TABLE),
        (["table"], ["--data.root", "photos"], DEFAULT_DATA),
        (["folder", "root"], [], TABLE),
        (["digits", "folder", "root"], ["--data.root=newer.csv"], TABLE),
        (["root", "folder"], [], None),
        (["folder"], ["--data.root=photos"], None),
        (["folder"], ["--data.batch_size=3"], None),
        (["folder"], ["--data.root=new.csv", f"--data={DEFAULT_DATA}"], None),
        (["folder"], ["--data.root=new.csv", "--data.class_path", DEFAULT_DATA], None),
        (["digits"], ["--data.root=new.csv"], None),
        (["root"], [], None),
        ([], ["--data.root=new.csv"], None),
    ],
)
def test_a_root_wins_over_the_class_that_a_config_below_it_names(
    configs: list[str], words: list[str], named: str | None
) -> None:
    front = [word for name in configs for word in ("--config", f"{name}.yaml")]
    after = 2 * (configs.index("root") if "root" in configs else len(configs))  # beside options that only the new class takes
    expected = [*front[:after], *([] if named is None else [f"--data={named}"]), *front[after:], *words]
    assert named_by_root("fit", [*front, *words]) == expected
    assert named_by_root("predict", [*front, *words]) == [*front, *words]


@pytest.mark.usefixtures("config_files")
def test_a_class_path_that_is_none_is_left_to_the_parser() -> None:
    Path("odd.yaml").write_text("data: {class_path: [1]}")
    words = ["--config", "odd.yaml", "--data.root=new.csv"]
    assert named_by_root("fit", words) == words


@pytest.mark.usefixtures("config_files")
def test_several_labels_per_image_choose_the_task() -> None:
    Path("a.csv").write_text("path,label\n1.png,a\n")
    Path("lists.jsonl").write_text('{"path": "1", "label": null, "tags": 1}\n{"path": "2", "label": ["a"]}\n')
    several = {"model": MULTI_LABEL_TASK, "data": TABLE}
    assert default_classes("fit", ["--data.root=a.csv", "--data.label_separator=|"]) == several
    assert default_classes("fit", ["--config", "root.yaml"]) == several
    assert default_classes("fit", ["--data.root=lists.jsonl", "--data.label_column=label"]) == several
    one = {"model": DEFAULT_TASK, "data": TABLE}
    for words in (["--data.root=a.csv"], ["--data.root=gone.jsonl"], ["--data.root=lists.jsonl", "--data.label_column=tags"]):
        assert default_classes("fit", words) == one
    assert default_classes("fit", ["--data.root=photos", "--data.label_separator=|"])["model"] == DEFAULT_TASK
