import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dropkey_cli.checkpoints import claim_run_folder, find_checkpoint, give_back_run_folder, read_checkpoint
from dropkey_cli.errors import InputError

DESCRIPTION: dict[str, Any] = {
    "config": {"model": {"class_path": "a.Model", "init_args": {"lr": 0.1}}, "data": {"class_path": "Data"}},
    "preprocessing": {"mean": [0.5, 0.5, 0.5], "crop_mode": None},
    "class_names": ["a", "b"],
    "model": {"name": "vit"},
}
CHECKPOINT: dict[str, Any] = {"dropkey": DESCRIPTION, "state_dict": {}, "pytorch-lightning_version": "2.6.6"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(path: str, age: int = 0) -> Path:
    """An empty file that was written ``age`` seconds before a fixed moment."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.utime(file, (1_000_000 - age,) * 2)
    return file


class Payload:
    """Unpickling it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch payload_ran",)


def test_run_folders_are_numbered_and_never_reused() -> None:
    assert claim_run_folder("a") == Path("runs/a/version_0")
    assert claim_run_folder("a") == Path("runs/a/version_1")
    assert claim_run_folder("b") == Path("runs/b/version_0")
    Path("runs/a/version_9").mkdir()
    Path("runs/a/version_x").mkdir()
    Path("runs/a/version_0").rmdir()
    assert claim_run_folder("a") == Path("runs/a/version_10")


def test_runs_that_ask_at_once_get_different_folders() -> None:
    claimed: list[Path] = []
    threads = [threading.Thread(target=lambda: claimed.append(claim_run_folder("a"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(Path(f"runs/a/version_{number}") for number in range(16))


def test_other_processes_claim_nothing() -> None:
    assert claim_run_folder("a", claim=False) == Path("runs/a")
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["", "/tmp/a", "../a", "a/../../b"])
def test_a_name_stays_under_runs(name: str) -> None:
    with pytest.raises(InputError, match=f"--name {name!r} is no folder name"):
        claim_run_folder(name)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_is_refused_leaves_no_folder(name: str) -> None:
    with pytest.raises(InputError, match="cannot make the run folder"):
        claim_run_folder(name)
    assert not Path("runs").exists()


def test_a_folder_is_given_back_with_the_empty_ones_above_it() -> None:
    kept, empty = claim_run_folder("a/b"), claim_run_folder("a/c/d")
    give_back_run_folder(empty)
    assert [path.name for path in Path("runs/a").iterdir()] == ["b"]
    (kept / "config.yaml").touch()
    give_back_run_folder(kept)
    assert (kept / "config.yaml").exists()
    (kept / "config.yaml").unlink()
    give_back_run_folder(kept)
    assert not Path("runs").exists()


def test_a_name_too_long_for_a_file_is_no_checkpoint() -> None:
    with pytest.raises(InputError, match="is neither a checkpoint nor a run folder"):
        find_checkpoint("x" * 9000)


def test_a_run_that_is_misspelt_is_offered_wherever_it_stands_among_the_others() -> None:
    checkpoint("runs/quickstart/version_0/checkpoints/best.ckpt", age=99)
    for number in range(7):
        checkpoint(f"runs/other/version_{number}/checkpoints/best.ckpt", age=number)
    with pytest.raises(InputError, match=r"; did you mean 'runs/quickstart' or 'runs/quickstart/version_0'"):
        find_checkpoint("runs/quickstrt")


@pytest.mark.parametrize("name", ["taken", "taken/a", "a\0b"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    Path("runs").mkdir()
    Path("runs/taken").touch()
    with pytest.raises(InputError, match=r"cannot make the run folder 'runs/.*give another --name"):
        claim_run_folder(name)


def test_every_way_to_name_a_checkpoint() -> None:
    old, new = (checkpoint(f"runs/a/version_{number}/checkpoints/best.ckpt", age=10 - number) for number in (0, 1))
    last = checkpoint("runs/a/version_1/checkpoints/last.ckpt", age=1)
    other = checkpoint("runs/b/version_0/checkpoints/best.ckpt", age=20)
    loose = checkpoint("elsewhere/any.name")
    assert find_checkpoint(str(loose)) == loose
    assert find_checkpoint("runs/a/version_0") == old
    assert find_checkpoint("runs/a/version_0/checkpoints") == old
    assert find_checkpoint("runs/a") == new
    assert find_checkpoint("runs/b") == other
    assert find_checkpoint("runs/a/version_1", prefer="last") == last
    assert find_checkpoint("best") == new
    assert find_checkpoint("last") == last


def test_the_newest_run_is_the_one_written_last_not_the_highest_number() -> None:
    checkpoint("runs/a/version_1/checkpoints/best.ckpt", age=9)
    newest = checkpoint("runs/a/version_0/checkpoints/best.ckpt", age=1)
    assert find_checkpoint("best") == find_checkpoint("runs/a") == newest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no checkpoint given: add --ckpt_path"),
        ("best", "--ckpt_path best: no run under runs/ has a best.ckpt"),
        ("nowhere", "--ckpt_path 'nowhere' is neither a checkpoint nor a run folder"),
    ],
)
def test_a_missing_checkpoint_lists_those_there_are(given: str | None, message: str) -> None:
    with pytest.raises(InputError, match=f"{message}.*there are none under runs/ here"):
        find_checkpoint(given)
    for number in range(7):
        checkpoint(f"runs/a/version_{number}/checkpoints/last.ckpt", age=number)
    with pytest.raises(InputError, match=f"{message}.*newest first: runs/a/version_0/.*version_4/\\S* and 2 more$"):
        find_checkpoint(given)


def test_description_of_a_checkpoint() -> None:
    torch.save(CHECKPOINT, "good.ckpt")
    assert read_checkpoint(Path("good.ckpt")) == DESCRIPTION


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"state_dict": None}, "state_dict"),
        ({"state_dict": [1]}, "state_dict"),
        ({"pytorch-lightning_version": None}, "pytorch-lightning_version"),
        ({"pytorch-lightning_version": "x"}, "pytorch-lightning_version"),
        ({"pytorch-lightning_version": "2.6.6; x"}, "pytorch-lightning_version"),
        ({"loops": {"fit_loop": {}}}, "loops"),
        ({"loops": 3}, "loops"),
        ({"callbacks": [1]}, "callbacks"),
        ({"optimizer_states": {}}, "optimizer_states"),
        ({"lr_schedulers": "x"}, "lr_schedulers"),
        ({"epoch": "x"}, "epoch"),
        ({"global_step": 1.5}, "global_step"),
        ({"class_names": ["a"]}, "class_names"),
        ({"class_names": "ab"}, "class_names"),
        ({"class_names": ["a", 3]}, "class_names"),
        ({"class_names": torch.ones(2)}, "class_names, class_names"),
        ({"preprocessing": "x"}, "preprocessing"),
        ({"preprocessing": {"mean": torch.ones(3)}}, "preprocessing"),
        ({"model": None}, "model"),
        ({"more": {3: 4}}, "more"),
        ({"config": 3}, "config"),
        ({"config": {"model": DESCRIPTION["config"]["model"]}}, "config.data"),
        ({"config": {**DESCRIPTION["config"], "model": {"class_path": 3}}}, "config.model"),
        ({"config": {**DESCRIPTION["config"], "model": {"class_path": "dropkey_cli./tmp/evil.Model"}}}, "config.model"),
        ({"config": {**DESCRIPTION["config"], "model": {"class_path": ""}}}, "config.model"),
        ({"config": {**DESCRIPTION["config"], "model": {"class_path": "a.B", "init_args": [1]}}}, "config.model"),
    ],
    ids=str,
)
def test_a_damaged_checkpoint_is_refused_with_what_is_damaged(damage: dict[str, Any], named: str) -> None:
    inside = {name: value for name, value in damage.items() if name in (*DESCRIPTION, "more")}
    outside = {name: value for name, value in damage.items() if name not in inside}
    torch.save({**CHECKPOINT, **outside, "dropkey": {**DESCRIPTION, **inside}}, "x.ckpt")
    with pytest.raises(InputError, match=rf"^'x.ckpt' is damaged, its {named} cannot be: give one that dropkey fit wrote$"):
        read_checkpoint(Path("x.ckpt"))


@pytest.mark.parametrize("version", ["2.6.6", "2.7.0rc1", "2.6.0.dev20251110", "3.0"])
def test_every_release_of_lightning_has_a_version(version: str) -> None:
    loops: dict[str, dict[str, Any]] = {f"{name}_loop": {} for name in ("fit", "validate", "test", "predict")}
    torch.save({**CHECKPOINT, "pytorch-lightning_version": version, "loops": loops, "callbacks": {}}, "good.ckpt")
    assert read_checkpoint(Path("good.ckpt")) == DESCRIPTION


@pytest.mark.parametrize("content", [b"", b"no checkpoint", bytes(range(256)) * 20])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes) -> None:
    Path("x.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=r"^'x.ckpt' is no checkpoint that can be loaded safely \(.*give one that dropkey"):
        read_checkpoint(Path("x.ckpt"))


def test_a_checkpoint_never_runs_code() -> None:
    torch.save({"dropkey": DESCRIPTION, "evil": Payload()}, "zip.ckpt")
    torch.save({"dropkey": Payload()}, "legacy.ckpt", _use_new_zipfile_serialization=False)
    Path("pickle.ckpt").write_bytes(pickle.dumps(Payload()))
    for name in ("zip.ckpt", "legacy.ckpt", "pickle.ckpt"):
        with pytest.raises(InputError, match=f"'{name}' is no checkpoint that can be loaded safely"):
            read_checkpoint(Path(name))
    assert not Path("payload_ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        torch.ones(3),
        {"state_dict": {}},
        {"dropkey": 3},
        {"dropkey": {"class_names": []}},
    ],
)
def test_a_checkpoint_of_another_program_is_refused(content: object) -> None:
    torch.save(content, "x.ckpt")
    with pytest.raises(InputError, match=r"^'x.ckpt' was not written by dropkey"):
        read_checkpoint(Path("x.ckpt"))


def test_run_without_validation_gives_its_last_checkpoint() -> None:
    last = checkpoint("runs/a/version_0/checkpoints/last.ckpt")
    assert find_checkpoint("runs/a/version_0") == last
    best = checkpoint("runs/a/version_0/checkpoints/best.ckpt")
    assert find_checkpoint("runs/a/version_0") == best
    assert find_checkpoint("runs/a/version_0", prefer="last") == last


def test_a_large_folder_is_not_searched_to_its_bottom() -> None:
    near = checkpoint("home/work/project/runs/a/version_0/checkpoints/best.ckpt")
    assert find_checkpoint("home/work/project") == find_checkpoint("home/work") == near
    with pytest.raises(InputError, match="'home' is neither a checkpoint nor a run folder"):
        find_checkpoint("home")
    deep = checkpoint("runs/a/b/c/d/e/version_0/checkpoints/best.ckpt")
    assert find_checkpoint("best") == find_checkpoint("runs") == deep


def test_a_word_that_is_nearly_one_is_named() -> None:
    with pytest.raises(InputError, match=r"'bset' is neither .*; did you mean 'best'\?$"):
        find_checkpoint("bset")
