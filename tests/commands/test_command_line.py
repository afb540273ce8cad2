from pathlib import Path

import pytest

from dropkey_cli.commands.command_line import (
    asked_checkpoint,
    check_environment,
    check_words,
    configs_first,
    given_checkpoint,
    given_root,
    underscored,
)
from dropkey_cli.errors import InputError


def test_configs_come_first_and_keep_their_order() -> None:
    words = [
        "--model.lr",
        "1",
        "--config",
        "a.yaml",
        "--data.root=x",
        "-c",
        "b.yaml",
        "--config=c.yaml",
        "--trainer.max_steps",
        "-1",
    ]
    expected = ["--config", "a.yaml", "--config", "b.yaml", "--config", "c.yaml"]
    assert configs_first(words) == [*expected, "--model.lr", "1", "--data.root=x", "--trainer.max_steps", "-1"]


def test_words_without_a_config_stay_as_they_are() -> None:
    words = ["--trainer.callbacks+=EarlyStopping", "--ckpt_path", "best", "stray", "-x"]
    assert configs_first(words) == words


def test_a_config_without_a_file_is_refused() -> None:
    with pytest.raises(InputError, match="--config needs a YAML file"):
        configs_first(["--model.lr", "1", "--config"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--ckpt_path", "best"], "best"),
        (["--ckpt_path=best"], "best"),
        (["--ckpt_path", "null"], None),
        (["--ckpt_path"], None),
        (["--config", "a.yaml"], "from_a"),
        (["--config", "a.yaml", "--config", "b.yaml"], "from_b"),
        (["--config", "b.yaml", "--config", "none.yaml"], "from_b"),
        (["--config", "a.yaml", "--ckpt_path", "mine"], "mine"),
        (["--config", "missing.yaml"], None),  # the parser says so
    ],
)
def test_checkpoint_of_the_command_line_beats_the_last_configs(
    words: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("ckpt_path: from_a")
    Path("b.yaml").write_text("ckpt_path: from_b")
    Path("none.yaml").write_text("name: x")
    assert given_checkpoint(words) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not valid YAML"),
        (b"\xff\xfe\xfa", "is not valid YAML"),
        (b"- 1", "holds no options"),
        (b"ckpt_path: [1]", r"ckpt_path \[1\] is not valid"),
    ],
)
def test_an_unusable_config_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        given_checkpoint(["--config", str(tmp_path / "c.yaml")])


def test_only_fit_and_help_do_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, words in (("fit", []), ("predict", ["--help"]), ("test", ["--print_config"])):
        assert asked_checkpoint(command, words) is None
    with pytest.raises(InputError, match="no checkpoint given"):
        asked_checkpoint("predict", [])
    with pytest.raises(InputError, match="'nowhere' is neither a checkpoint"):
        asked_checkpoint("fit", ["--ckpt_path", "nowhere"])


def test_fit_goes_on_from_the_last_checkpoint_and_the_others_take_the_best(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("best", "last"):
        (tmp_path / f"checkpoints/{name}.ckpt").touch()
    words = ["--ckpt_path", str(tmp_path)]
    assert asked_checkpoint("fit", words) == tmp_path / "checkpoints/last.ckpt"
    assert asked_checkpoint("predict", words) == tmp_path / "checkpoints/best.ckpt"


@pytest.mark.parametrize("words", [["--data.root=\udcff"], ["--data.root", "\udcff"], ["a\0b"]])
def test_words_that_are_no_text_are_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match=r"(--data.root.*\\udcff|'a\\x00b').* is no UTF-8 text"):
        check_words(words)


def test_unusual_text_is_text() -> None:
    check_words(["--data.root", "Füße ☃😀", "--name=", ""])


@pytest.mark.parametrize("value", ["x", "", "-1", "1.5", "²"])
def test_numbers_of_processes_that_are_none_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_environment()
    monkeypatch.setenv("LOCAL_RANK", value)
    with pytest.raises(InputError, match=f"LOCAL_RANK is {value!r}; expected a whole number"):
        check_environment()


def test_dashes_in_option_names_are_underscores_and_values_are_left_alone() -> None:
    words = ["--top-k", "3", "--data.batch-size=2", "--name=my-run", "a-b"]
    assert underscored(words) == ["--top_k", "3", "--data.batch_size=2", "--name=my-run", "a-b"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--data.root", "a.csv"], "a.csv"),
        (["--data.root=a.csv", "--data.root=b"], "b"),
        (["--data.init_args.root=a.csv"], "a.csv"),
        (["--data.root"], None),
        (["--data.test_root=t.csv"], "t.csv"),
        (["--data.test_root=t.csv", "--data.root=a"], "a"),
        (["--config", "one.yaml"], "one.csv"),
        (["--config", "one.yaml", "-c", "two.yaml"], "two"),
        (["--config", "two.yaml", "--config=none.yaml"], "two"),
        (["--config", "one.yaml", "--data.val_root=v.csv"], "v.csv"),
        (["--config", "{data: {root: x}}", "--config", "nowhere.yaml"], None),
    ],
    ids=str,
)
def test_given_root(words: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("data: {root: one.csv, batch_size: 3}")
    Path("two.yaml").write_text("data: {class_path: a.B, init_args: {root: two}}")
    Path("none.yaml").write_text("model: {lr: 1}\ndata: [1]")
    assert given_root(words) == expected
