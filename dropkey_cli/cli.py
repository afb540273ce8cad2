"""The ``dropkey`` command: finds the sub-command and turns what goes wrong into one line and an exit code.

Nothing heavy is imported before the sub-command is known, so that ``--help`` and ``--version`` answer at once.
"""

import atexit
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module

from dropkey_cli import __version__
from dropkey_cli.errors import InputError, RunError, did_you_mean

TRAINER_COMMANDS = {
    "fit": "train a vision transformer with DropKey, on your images or with --config",
    "validate": "metrics of a checkpoint on the validation images",
    "test": "metrics of a checkpoint on the test images",
    "predict": "classes of images, from a checkpoint, into predictions.csv",
}
OTHER_COMMANDS = {
    "configs": "the shipped recipes with their claims; prints one, or copies it",
    "models": "the networks there are, their weights, and how many of their layers take DropKey",
    "check": "what is wrong with a folder of images: unreadable files, images in two splits, conflicting labels",
    "inspect": "where a model attends and how much DropKey would drop there",
    "ablate": "does DropKey help on your data, and with which ratio: a grid over several seeds, compared",
    "export": "a trained network for timm, ONNX or torch.export, checked as it is written",
    "benchmark": "what DropKey costs on this machine, in time and memory",
    "completion": "Tab completion for bash, zsh or fish",
}
HEAVY_COMMANDS = {"check", "inspect", "ablate", "export", "benchmark"}
"""Those that import torch; what they take stands in a table that does not."""
COMMANDS = {**TRAINER_COMMANDS, **OTHER_COMMANDS}

OTHER_NAMES = {"train": "fit", "finetune": "fit", "eval": "validate", "evaluate": "validate", "val": "validate"}
OTHER_NAMES |= {"infer": "predict", "inference": "predict", "classify": "predict", "recipes": "configs", "config": "configs"}
OTHER_NAMES |= {"list": "models", "model": "models", "checks": "check", "bench": "benchmark", "resume": "fit"}

LONGEST = 1600
"""Letters of an error message: what was given may be a whole file."""

HELP = f"""usage: dropkey COMMAND [OPTIONS]

Train and run vision transformers regularised with DropKey (arXiv:2208.02646).

commands:
{chr(10).join(f"  {name:<12}{text}" for name, text in COMMANDS.items())}

first steps:
  dropkey fit --config quickstart
  dropkey fit --data.root ./photos --model.model_name vit_tiny_patch16_224
  dropkey predict --ckpt_path best --data.root image.jpg
  dropkey models 'vit_tiny*'

dropkey COMMAND --help lists a command's options; dropkey --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one ``dropkey`` command.

    Args:
        argv: The words after ``dropkey``; by default those of this process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, config or data, 130 interrupted, 141 the reader of a pipe left.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, RunError) as error:
        print(f"{_speaker()}: error: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("dropkey: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # argparse after --help or --print_config, Lightning after Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            return 130
        if isinstance(stop.code, str):
            print(f"dropkey: {stop.code}", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0


def _dispatch(words: list[str]) -> None:
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(HELP, end="")
    elif command in ("-V", "--version"):
        print(f"dropkey {__version__}")
    elif command in TRAINER_COMMANDS:
        _run(command, words[1:])
    elif command in OTHER_COMMANDS:
        _run_other(command, words[1:])
    else:
        raise InputError(f"{command!r} is no command: give one of {', '.join(COMMANDS)}{_near_commands(command)}")


def _run_other(command: str, words: list[str]) -> None:
    """Run a command that is none of the Trainer's: the function of its name in the module of its name."""
    if command in HEAVY_COMMANDS and _help_wanted(words) is not None and "--fit" not in words:
        from dropkey_cli.commands.help import print_tool_help

        print_tool_help(command)
        return
    with _large_imports() if command in HEAVY_COMMANDS else nullcontext():
        function = getattr(import_module(f"dropkey_cli.commands.{command}"), command)
    further = (COMMANDS, TRAINER_COMMANDS) if command == "completion" else ()
    if function(words, *further) is False:
        raise SystemExit(1)


def _near_commands(given: str) -> str:
    """The nearest commands as the end of a sentence, also by what other tools call them."""
    if given in OTHER_NAMES:
        return f"; did you mean {OTHER_NAMES[given]!r}?"
    if given.startswith("-"):
        near = did_you_mean(given, ["--help", "--version"])
        return near or f"; options come after the command: dropkey fit {given.partition('=')[0]} …"
    return did_you_mean(given, COMMANDS) or (did_you_mean("fit", COMMANDS) if did_you_mean(given, ["train"]) else "")


def _run(command: str, words: list[str]) -> None:
    about = _help_wanted(words)
    if about is not None:
        from dropkey_cli.commands.help import print_help

        print_help(command, words, about)
        return
    from dropkey_cli.commands.command_line import check_environment, check_words, underscored
    from dropkey_cli.commands.early_errors import check_early
    from dropkey_cli.commands.own_options import flags_spelled_out
    from dropkey_cli.commands.resume import resumed_run

    check_environment()
    check_words(words)
    words, resumed = resumed_run(command, flags_spelled_out(command, underscored(words)))
    check_early(command, words)
    sys.path.append("")  # a user's own class_path beside the config, also for the installed script
    with _large_imports():
        from dropkey_cli.commands.run import run

    run(command, words, resumed=resumed)


def _help_wanted(words: list[str]) -> str | None:
    """What is after --help, "" for nothing, "all" for --help-all; None where no help is asked for."""
    for word, after in zip(words, [*words[1:], ""], strict=False):
        if word in ("--help-all", "--help_all"):
            return "all"
        if word in ("-h", "--help"):
            return "" if after.startswith("-") else after
        if word.startswith("--help="):
            return word.partition("=")[2]
    return None


@contextmanager
def _large_imports() -> Iterator[None]:
    """Import torch and Lightning without searching their million objects for garbage, which takes a second.

    Nor are they searched while the command runs, or copied for that by the processes that load images.
    """
    first = "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    if first:
        gc.freeze()
        atexit.register(gc.unfreeze)  # at exit, triton's bindings report what is still there as leaked, at length


def _speaker() -> str:
    """The program, and which of its processes where it is not the first."""
    number = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    return "dropkey" if number == "0" or not number.isdecimal() else f"dropkey (process {number})"


def _one_line(error: Exception) -> str:
    """The message, its middle left out if it is very long; one from a data-loading process carries a traceback in front."""
    line = " ".join(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
