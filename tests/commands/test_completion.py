import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropkey_cli.cli import COMMANDS, TRAINER_COMMANDS, main
from dropkey_cli.commands.completion import SCRIPTS, candidates, completion
from dropkey_cli.commands.option_list import sections
from dropkey_cli.commands.recipes import recipes
from dropkey_cli.errors import InputError

READY = "ready> "


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def completed(*words: str) -> list[str]:
    return candidates(list(words), list(COMMANDS), list(TRAINER_COMMANDS))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["f"], ["fit"]),
        (["com"], ["completion"]),
        (["fit", "--trainer.max_e"], ["--trainer.max_epochs"]),
        (["fit", "--model.dropkey.st"], ["--model.dropkey.structure"]),
        (["fit", "--model.dropkey.structure", "b"], ["block"]),
        (["fit", "--on_nonfinite_loss="], ["--on_nonfinite_loss=stop", "--on_nonfinite_loss=skip"]),
        (["fit", "--model.dropkey.structure", "=", "b"], ["block"]),  # as bash splits it
        (["fit", "--model.pretrained", ""], ["true", "false"]),
        (["fit", "--trainer.precision", "bf16-m"], ["bf16-mixed"]),
        (["fit", "--config", "overlays/d"], ["overlays/ddp"]),
        (["fit", "--model.model_name", "ceit_tiny"], ["ceit_tiny_patch16_224", "ceit_tiny_patch16_384"]),
        (["fit", "--name", ""], []),  # anything
        (["fit", "--help", "dr"], ["dropkey"]),
        (["predict", "--top-"], ["--top_k"]),
        (["fit", "--top_"], []),
        (["configs", "quick"], ["quickstart"]),
        (["fit", "--logger", "t"], ["tensorboard"]),
        (["configs", "quickstart", "--c"], ["--copy"]),
        (["models", "t2t_vit_7"], ["t2t_vit_7"]),
        (["inspect", "t2t_vit_7", "--dropkey.ra"], ["--dropkey.ratio"]),
        (["benchmark", "--prec"], ["--precision"]),
        (["benchmark", "--fit", "--data.ro"], ["--data.root"]),
        (["ablate", "--see"], ["--seeds"]),
        (["ablate", "--data.max_t"], ["--data.max_train_images"]),
        (["ablate", "--seeds", "2", "--grid", "p"], ["paper"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["fit", "--data", "dropkey_cli.data.digits.Digits", "--data.deg"], ["--data.degrees"]),
        (["fit", "--data", "nowhere.Data", "--data.val"], ["--data.val_fraction"]),
        (["nonsense", "--x"], []),
    ],
)  # fmt: skip
def test_what_a_word_may_become(words: list[str], expected: list[str]) -> None:
    assert completed(*words) == expected


def test_all_commands_come_first() -> None:
    assert completed("") == completed() == [*COMMANDS, "--help", "--version"]


def test_the_parts_of_long_names_come_one_after_the_other() -> None:
    first = completed("fit", "--")
    assert {"--config", "--name", "--data.", "--model.", "--trainer."} <= set(first)
    assert not any("." in name[:-1] for name in first)
    assert len(completed("fit", "--trainer.")) == len(sections("fit", [])["trainer"])
    assert "--model.dropkey." in completed("fit", "--model.")


def test_runs_and_files_are_offered() -> None:
    for name in ("a/version_0", "a/version_1"):
        Path("runs", name, "checkpoints").mkdir(parents=True)
    Path("runs/a/version_1/checkpoints/last.ckpt").touch()
    Path("mine.yaml").touch()
    Path("other.txt").touch()
    assert completed("fit", "--resume", "") == ["last", "runs/a/version_1", "runs/"]
    assert completed("predict", "--ckpt_path", "runs/a") == ["runs/a/version_1"]
    assert completed("fit", "--config", "m") == ["mine.yaml"]
    assert completed("fit", "--config", "") == [*(recipe.name for recipe in recipes()), "mine.yaml", "runs/"]


def test_a_shell_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert (
        "'bsh' is no shell: give one of bash, zsh, fish: dropkey completion bash; did you mean 'bash'"
        in capsys.readouterr().err
    )
    assert main(["completion"]) == 2
    assert main(["completion", "--help"]) == 0
    with pytest.raises(InputError, match="'bash zsh' is no shell"):
        completion(["bash", "zsh"], [], [])


def test_an_answer_needs_no_torch_and_little_time() -> None:
    program = """
import sys, time
from dropkey_cli.cli import main
main(['completion', 'words', 'fit', '--trainer.'])
main(['completion', 'bash'])
sys.exit('torch' in sys.modules or 'lightning' in sys.modules or time.process_time() > 2)
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


class Shell:
    """An interactive shell in a terminal of its own.

    Args:
        command: Starts it.
        folder: Its working folder, with dropkey on its path.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        (folder / "bin").mkdir()
        shim = folder / "bin" / "dropkey"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m dropkey_cli "$@"\n')
        shim.chmod(0o755)
        root = str(Path(__file__).parents[2])
        environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": root,
            "TERM": "dumb",
            "HOME": str(folder),
        }
        environment |= {"PS1": READY, "PROMPT": READY}
        self.terminal, inner = pty.openpty()
        termios.tcsetwinsize(inner, (50, 400))  # narrow ones scroll
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )
        os.close(inner)

    def shows(self, typed: str, expected: str) -> str:
        """Type something, and wait until the terminal shows what is expected."""
        os.write(self.terminal, typed.encode())
        shown, end = "", time.monotonic() + 60
        while expected not in shown and time.monotonic() < end:
            if select.select([self.terminal], [], [], 1)[0]:
                shown += os.read(self.terminal, 4096).decode(errors="replace")
        assert expected in shown
        return shown


@pytest.mark.parametrize(
    ("name", "start", "prepare"),
    [
        ("bash", ["bash", "--norc", "--noprofile", "-i"], "bind 'set bell-style none'; "),
        ("zsh", ["zsh", "-f", "-i"], f"unsetopt PROMPT_SP; PROMPT='{READY}'; autoload -Uz compinit; compinit -u; "),
    ],
)
def test_the_tab_key_completes_in_a_real_shell(name: str, start: list[str], prepare: str, folder: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    Path("runs/mine/version_0/checkpoints").mkdir(parents=True)
    Path("runs/mine/version_0/checkpoints/last.ckpt").touch()
    shell = Shell(start, folder)
    try:
        shell.shows(f'{prepare}eval "$(dropkey completion {name})"; echo pre""pared\n', "prepared")
        shell.shows("dropkey fi\t", "dropkey fit ")
        shell.shows("--trai\t", "--trainer.")
        shell.shows("max_e\t", "max_epochs ")
        shell.shows("3 --model.dropkey.str\t", "structure ")
        shell.shows("bl\t", "block ")
        shell.shows("--config qui\t", "quickstart ")
        shell.shows("--resume runs/m\t", "version_0 ")
        shell.shows("--model.dropkey.schedule=cons\t", "constant")
    finally:
        shell.process.kill()
        shell.process.wait()
        os.close(shell.terminal)


def test_scripts_are_valid_and_say_how_to_keep_them() -> None:
    for name, script in SCRIPTS.items():
        assert script.startswith(f"# Tab completion of dropkey in {name}; to have it always")
        if shutil.which(name) is not None:
            assert subprocess.run([name, "-n"], input=script, text=True, capture_output=True).returncode == 0


def test_fish_asks_in_the_same_words(folder: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    shim = folder / "dropkey"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m dropkey_cli "$@"\n')
    shim.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(folder)}

    def asked(line: str) -> list[str]:
        program = f"dropkey completion fish | source; complete -C '{line}'"
        return subprocess.run(["fish", "-c", program], env=environment, capture_output=True, text=True).stdout.split()

    assert asked("dropkey fi") == ["fit"]
    assert asked("dropkey fit --trainer.max_e") == ["--trainer.max_epochs"]
    assert "--model.dropkey.structure=block" in asked("dropkey fit --model.dropkey.structure=b")
