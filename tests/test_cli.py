import os
import subprocess
import sys
from pathlib import Path

import pytest

from dropkey_cli import __version__, cli
from dropkey_cli.cli import COMMANDS, main
from dropkey_cli.errors import InputError, RunError

SCRIPT = Path(sys.executable).parent / "dropkey"


def stop_with(monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    def dispatch(words: list[str]) -> None:
        raise stop

    monkeypatch.setattr(cli, "_dispatch", dispatch)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.split("commands:\n")[1].split("\n\n")[0].splitlines()] == list(COMMANDS)
    assert err == ""


@pytest.mark.parametrize("word", ["-V", "--version"])
def test_version(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    assert capsys.readouterr().out == f"dropkey {__version__}\n"


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("fitt", "'fit'"),
        ("tset", "'test'"),
        ("inspct", "'inspect'"),
        ("xyz", "predict"),
        ("train", "mean 'fit'"),
        ("trian", "mean 'fit'"),
        ("eval", "mean 'validate'"),
        ("--hlep", "mean '--help'"),
        ("--config", "; options come after the command: dropkey fit --config …"),
        ("--data.root=photos", "; options come after the command: dropkey fit --data.root …"),
    ],
)
def test_unknown_command_is_named_with_the_nearest(word: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"dropkey: error: {word!r} is no command: give one of fit, validate")
    assert near in err
    assert err.count("\n") == 1


def test_input_error_is_one_line_without_a_workers_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = "Caught InputError in a worker.\nTraceback:\n  File …\ndropkey_cli.errors.InputError: cannot read\n 'a'"
    stop_with(monkeypatch, InputError(worker))
    assert main(["fit"]) == 2
    assert capsys.readouterr().err == "dropkey: error: cannot read 'a'\n"


def test_a_run_error_is_one_line_and_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stop_with(monkeypatch, RunError("the loss is nan\n at step 3"))
    assert main(["fit"]) == 1
    assert capsys.readouterr().err == "dropkey: error: the loss is nan at step 3\n"


def test_a_very_long_message_keeps_its_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stop_with(monkeypatch, InputError(f"model.lr '{'x' * 9000}' is not valid: expected a number"))
    assert main(["fit"]) == 2
    err = capsys.readouterr().err
    assert len(err) < 1700
    assert err.startswith("dropkey: error: model.lr 'xxx")
    assert err.endswith("xx' is not valid: expected a number\n")


def interrupted() -> SystemExit:
    """What Lightning leaves after Ctrl-C."""
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    except SystemExit as stop:
        return stop


@pytest.mark.parametrize(
    ("stop", "code"),
    [(SystemExit(), 0), (SystemExit(0), 0), (SystemExit(143), 143), (SystemExit("words"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(stop: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_with(monkeypatch, stop)
    assert main(["fit"]) == code


def test_ctrl_c_in_training_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_with(monkeypatch, interrupted())
    assert main(["fit"]) == 130


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_with(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["fit"])


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["fitt"],
        ["models", "vit_tiny*"],
        ["fit", "--help"],
        ["predict", "--config", "missing.yaml", "--help"],
        ["fit", "--help-all"],
        ["check", "--help"],
        ["inspect", "--help"],
        ["benchmark", "--help"],
        ["configs"],
        ["completion", "bash"],
        ["completion", "words", "fit", "--"],
        ["fit", "--config", "missing.yaml"],
        ["fit", "--config", "broken.yaml"],
        ["fit", "--config", "typing_error.yaml"],
        ["fit", "--model.lrr", "1"],
        ["fit", "--trainer.max_epochs"],
        ["predict"],
    ],
    ids=" ".join,
)
def test_answers_without_importing_torch(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("model: [")
    (tmp_path / "typing_error.yaml").write_text("trainer: {max_epoch: 3}")
    program = f"import sys; from dropkey_cli.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True).returncode == 0


def test_large_imports_are_never_searched_for_garbage() -> None:
    program = """
import gc, sys
from dropkey_cli.cli import _large_imports
with _large_imports():
    import jsonargparse
    assert not gc.isenabled()
sys.exit(not (gc.isenabled() and gc.get_freeze_count() > 10_000))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("command", [[str(SCRIPT)], [sys.executable, "-m", "dropkey_cli"]])
def test_installed_commands(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"dropkey {__version__}\n")
    assert subprocess.run([*command, "fitt"], cwd=tmp_path, capture_output=True).returncode == 2
    listed = subprocess.run([*command, "models", "--json", "test_vit"], cwd=tmp_path, capture_output=True, text=True)
    assert '"attention_layers": 6' in listed.stdout  # the table lies in the package


def test_reader_that_leaves_a_pipe_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-m", "dropkey_cli", "--help"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
