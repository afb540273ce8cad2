from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dropkey_cli.cli import main

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
SHORT_FIT = (
    "fit", "--config", QUICKSTART, "--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=2",
)  # fmt: skip


class Outcome(NamedTuple):
    """What a command gave back."""

    code: int
    out: str
    err: str


Dropkey = Callable[..., Outcome]


@pytest.fixture
def dropkey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dropkey:
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Outcome:
        capsys.readouterr()
        code = main(words)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the quickstart was trained twice, for two short epochs; tests only read it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(SHORT_FIT) == 0
        first = {file: file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()}
        assert main(SHORT_FIT) == 0
        assert {file: file.read_bytes() for file in first} == first
        yield folder


@pytest.fixture
def refused(dropkey: Dropkey) -> Callable[..., str]:
    """Runs a command that must be refused: exit code 2, nothing begun, one line; gives the line."""

    def run(*words: str) -> str:
        outcome = dropkey(*words)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.startswith("dropkey: error: ")
        assert not list(Path("runs").glob("*/version_*"))
        return outcome.err.removeprefix("dropkey: error: ").rstrip()

    return run
