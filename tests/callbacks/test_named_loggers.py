from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dropkey_cli.callbacks import named_loggers
from dropkey_cli.callbacks.named_loggers import NamedLoggers, flat, logger_names, remembered
from dropkey_cli.errors import InputError

MODULE: Any = None  # not looked at
CONFIG = "name: x\nmodel:\n  class_path: a.B\n  init_args: {lr: 0.1, dropkey: null}\ntrainer: {devices: [0, 1]}\n"
RUN = Path("runs/quickstart/version_0")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("NETRC", "nowhere"), ("WANDB_SILENT", "true"), ("MLFLOW_LOGGING_LEVEL", "ERROR")):
        monkeypatch.setenv(name, value)
    RUN.mkdir(parents=True)
    yield tmp_path


def trainer(**changes: object) -> Any:  # noqa: ANN401 - the little that is looked at
    return SimpleNamespace(**{"global_step": 0, "is_global_zero": True, "loggers": ["csv"], **changes})


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, []),
        ("tensorboard", ["tensorboard"]),
        ("csv, tensorboard,tensorboard", ["csv", "tensorboard"]),
        (["tensorboard"], ["tensorboard"]),
    ],
)
def test_names_of_loggers(given: str | list[str] | None, names: list[str]) -> None:
    assert logger_names(given) == names


def test_an_unknown_logger_names_the_nearest() -> None:
    message = (
        "--logger 'tensorbord' is unknown: give one or more of tensorboard, wandb, mlflow, csv; did you mean 'tensorboard'"
    )
    with pytest.raises(InputError, match=message):
        logger_names("tensorbord")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_line_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(name).mkdir()  # as wandb leaves it behind

    def missing(package: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(named_loggers, "version", missing)
    with pytest.raises(InputError, match=rf"--logger {name} needs a package .*: pip install 'dropkey\[{name}\]'"):
        logger_names(name)


def test_the_configuration_by_dotted_names() -> None:
    config = {"name": "x", "model": {"init_args": {"lr": 0.1, "dropkey": None}}, "empty": {}, "list": [1, 2]}
    expected = {"name": "x", "model.lr": 0.1, "model.dropkey": "None", "empty": "{}", "list": "[1, 2]"}
    assert dict(flat(config)) == expected


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_for_real_goes_on_where_the_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    for start, steps in ((0, (0, 1, 2)), (1, (1, 2, 3))):  # the first part saved a checkpoint after step 0
        run = trainer(global_step=start)
        NamedLoggers(["tensorboard", "csv"], RUN, CONFIG).on_train_start(run, MODULE)
        _, logger = run.loggers
        assert isinstance(logger, TensorBoardLogger)
        for step in steps:
            logger.log_metrics({"val/acc1": start + step / 10}, step=step)
        logger.finalize("success")
    found = scalars(RUN / "tensorboard")["val/acc1"]
    assert [step for step, _ in found] == [0, 1, 2, 3]
    assert [value for _, value in found] == pytest.approx([0.0, 1.1, 1.2, 1.3])
    assert "lr: 0.1" in (RUN / "tensorboard" / "hparams.yaml").read_text()
    assert f"tensorboard --logdir {RUN}/tensorboard" in capsys.readouterr().out


def test_only_the_first_process_starts_them_and_only_once() -> None:
    other = trainer(is_global_zero=False)
    callback = NamedLoggers(["tensorboard"], RUN, CONFIG)
    callback.on_train_start(other, MODULE)
    assert other.loggers == ["csv"]
    first = trainer()
    callback.on_train_start(first, MODULE)
    callback.on_train_start(first, MODULE)
    assert len(first.loggers) == 2


class Recorded:
    """In the place of a service's logger: what it was made with and given."""

    made: list["Recorded"]
    run_id = "run 7"

    def __init__(self, *arguments: object, **named: object) -> None:
        self.arguments, self.named = arguments, named
        self.hyperparameters: dict[str, object] = {}
        self._wandb_init = {"anonymous": None}
        self.experiment = SimpleNamespace(url="https://wandb.example/run")
        type(self).made.append(self)

    def log_hyperparams(self, values: dict[str, object]) -> None:
        self.hyperparameters = values


def started(name: str, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    Recorded.made = []
    for cls in ("WandbLogger", "MLFlowLogger"):
        monkeypatch.setattr(named_loggers, cls, Recorded)
    NamedLoggers([name], RUN, CONFIG).on_train_start(trainer(), MODULE)
    (logger,) = Recorded.made
    return logger


def test_wandb_is_kept_offline_without_an_account_and_goes_on_by_its_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = started("wandb", monkeypatch)
    assert first.arguments == ("quickstart/version_0",)
    identity = (RUN / "wandb" / "id").read_text()
    assert first.named == {"save_dir": str(RUN), "version": identity, "offline": True, "project": "dropkey"}
    assert first.hyperparameters["model.lr"] == 0.1
    assert f"wandb sync {RUN}/wandb/offline-run-*" in capsys.readouterr().out
    assert started("wandb", monkeypatch).named["version"] == identity
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    online = started("wandb", monkeypatch)
    assert (online.named["offline"], online.named["project"]) == (False, "mine")
    assert "https://wandb.example/run" in capsys.readouterr().out


def test_an_account_may_stand_in_netrc(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("netrc").write_text("machine api.wandb.ai\n")
    monkeypatch.setenv("NETRC", "netrc")
    assert started("wandb", monkeypatch).named["offline"] is False


def test_mlflow_logs_into_the_runs_folder_and_goes_on_by_its_run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    first = started("mlflow", monkeypatch)
    assert first.arguments == ("dropkey", "quickstart/version_0", f"sqlite:///{RUN}/mlflow/mlflow.db")
    assert first.named["run_id"] is None
    assert str(first.named["artifact_location"]).endswith(f"{RUN}/mlflow/artifacts")
    assert first.hyperparameters["trainer.devices"] == "[0, 1]"
    again = started("mlflow", monkeypatch)
    assert again.named["run_id"] == "run 7"
    assert again.hyperparameters == {}  # MLflow lets no parameter change
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    assert started("mlflow", monkeypatch).arguments[2] == "http://tracking"


def test_a_logger_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Recorded):
        def log_hyperparams(self, values: dict[str, object]) -> None:
            raise ConnectionError("no\nnetwork")

    Broken.made = []
    monkeypatch.setattr(named_loggers, "WandbLogger", Broken)
    with pytest.raises(InputError, match=r"^--logger wandb cannot start \(no network\): wandb login, or WANDB_MODE=offline$"):
        NamedLoggers(["wandb"], RUN, CONFIG).on_train_start(trainer(), MODULE)


def test_what_is_remembered_is_made_once() -> None:
    assert remembered(RUN / "a" / "id", lambda: "first") == "first"
    assert remembered(RUN / "a" / "id", lambda: "second") == "first"
