"""Valid command lines and configs with one part broken: exit code 2, one line that names the part, nothing left behind."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from dropkey_cli.cli import COMMANDS, main
from tests.commands.broken import BASES, BROKEN_CASES, HARMLESS, TEXTS, Case, misspelt


class Outcome(NamedTuple):
    """What a command gave back and left in its folder."""

    code: int
    err: str
    left: list[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An image folder, a run trained on it, and an empty folder ``here`` that commands run in."""
    place = tmp_path_factory.mktemp("fuzz")
    for split in ("train", "val", "test"):
        for shade, name in enumerate("abc"):
            (place / "flags" / split / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (20, 20), (90 * shade, 60, 30)).save(place / "flags" / split / name / f"{number}.png")
    (place / "here").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place / "here")
        with contextlib.redirect_stdout(io.StringIO()):
            assert main([*BASES["folder"], "--name=made"]) == 0
        shutil.move("runs/made/version_0", place / "run")
        whole = (place / "run/checkpoints/last.ckpt").read_bytes()
        (place / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
        (place / "empty.ckpt").touch()
        torch.save({"weights": 1}, place / "other.ckpt")
        patch.chdir(place)  # "here" is made anew for each command
        torch.save({"dropkey": {"config": 3, "preprocessing": {}, "class_names": []}}, place / "odd.ckpt")
        yield place


def outcome(place: Path, words: tuple[str, ...], config: bytes | None = None, env: tuple[str, str] | None = None) -> Outcome:
    """Run a command in this process, in an empty folder."""
    here = place / "here"
    shutil.rmtree(here)
    here.mkdir()
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        patch.chdir(here)
        if config is not None:
            Path("c.yaml").write_bytes(config)
        if env is not None:
            patch.setenv(*env)
        code = main(list(words))
    left = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.name != "c.yaml")
    return Outcome(code, err.getvalue(), left)


@pytest.mark.parametrize("base", BASES)
def test_the_unbroken_lines_run(base: str, place: Path) -> None:
    assert outcome(place, BASES[base])[:2] == (0, "")


def check_refused(place: Path, case: Case) -> None:
    code, err, left = outcome(place, (*BASES[case.base], *case.words), case.config, case.env)
    assert code == 2, err
    assert err.count("\n") == 1 and err.startswith("dropkey: error: "), err
    assert len(err) < 2000
    assert "Traceback" not in err
    assert case.named in err
    assert left == []  # no run, no file, nothing that a payload wrote


@settings(max_examples=60, derandomize=True, deadline=None)
@given(case=BROKEN_CASES)
def test_one_broken_part_is_named_in_one_line(case: Case, place: Path) -> None:
    check_refused(place, case)


@pytest.mark.slow
@settings(max_examples=500, derandomize=True, deadline=None)
@given(case=BROKEN_CASES)
def test_one_broken_part_is_named_in_one_line_500_times(case: Case, place: Path) -> None:
    check_refused(place, case)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(word=st.sampled_from(sorted(COMMANDS)).flatmap(misspelt) | TEXTS)
def test_an_unknown_command_is_named(word: str, place: Path) -> None:
    assume(word not in COMMANDS)
    code, err, _ = outcome(place, (word, "--model.lr", "1"))
    assert code == 2
    assert err.startswith(f"dropkey: error: {' '.join(repr(word)[:20].split())}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("env", HARMLESS, ids=str)
def test_an_odd_environment_changes_nothing(env: tuple[str, str], place: Path) -> None:
    assert outcome(place, BASES["quickstart"], env=env)[:2] == (0, "")
