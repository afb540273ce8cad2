"""``dropkey completion bash|zsh|fish``: the script that lets the Tab key complete commands, options and their values."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from dropkey_cli.catalog import read_catalog
from dropkey_cli.checkpoints import RUNS
from dropkey_cli.commands.option_list import SECTIONS, Option, sections, tool_options
from dropkey_cli.commands.own_options import LOGGERS
from dropkey_cli.commands.recipes import recipes
from dropkey_cli.commands.tool_options import GRID_NAMES, NOT_FOR_ABLATE, TOOLS
from dropkey_cli.errors import InputError, did_you_mean

SCRIPTS = {
    "bash": """\
# Tab completion of dropkey in bash; to have it always, add to ~/.bashrc:  eval "$(dropkey completion bash)"
_dropkey() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[./] ]]; then compopt -o nospace; fi
}
complete -o bashdefault -o default -F _dropkey dropkey
""",
    "zsh": """\
# Tab completion of dropkey in zsh; to have it always, add to ~/.zshrc, after compinit:  eval "$(dropkey completion zsh)"
_dropkey() {
    local -a found
    found=("${(@f)$("${words[1]}" completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( ! ${#found} )); then _files; return; fi
    compadd -Q -S '' -- ${(M)found:#*[./]}
    compadd -Q -- ${found:#*[./]}
}
compdef _dropkey dropkey
""",
    "fish": """\
# Tab completion of dropkey in fish; to have it always:  dropkey completion fish > ~/.config/fish/completions/dropkey.fish
complete -c dropkey -a '(dropkey completion words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
""",
}
# Commands that take few options, with their first argument's kind
FLAGS = {
    "models": ("--json", "--help"),
    "configs": ("--copy", "--help"),
    "completion": ("--help",),
}
HELP = """\
usage: dropkey completion bash|zsh|fish

Print the script that lets the Tab key complete commands, options, and their values: recipes, models, runs, choices.
Now, in this shell:  eval "$(dropkey completion bash)"; its first line says how to have it always.
"""


def completion(words: list[str], commands: Iterable[str], trainer_commands: Iterable[str]) -> None:
    """Print a shell's script, or what it asks for.

    Args:
        words: The words after ``dropkey completion``: a shell's name, or words and what is typed so far.
        commands: All commands.
        trainer_commands: Those of the Trainer.

    Raises:
        InputError: If there is no such shell.
    """
    if words[:1] == ["words"]:
        sys.stdout.writelines(f"{found}\n" for found in candidates(words[1:], list(commands), list(trainer_commands)))
    elif words[:1] in (["-h"], ["--help"]):
        print(HELP, end="")
    elif len(words) == 1 and words[0] in SCRIPTS:
        print(SCRIPTS[words[0]], end="")
    else:
        given = f"{' '.join(words)!r} is no shell: " if words else ""
        near = did_you_mean(words[0], SCRIPTS) if words else ""
        raise InputError(f"{given}give one of {', '.join(SCRIPTS)}: dropkey completion bash{near}")


def candidates(words: list[str], commands: list[str], trainer_commands: list[str]) -> list[str]:
    """What the last word may become.

    Args:
        words: The words after ``dropkey``, the last one unfinished; bash gives an equals sign as a word of its own.
        commands: All commands.
        trainer_commands: Those of the Trainer.
    """
    *before, last = words or [""]
    if not before:
        return _beginning(last, [*commands, "--help", "--version"])
    command, before = before[0], [word for word in before[1:] if word != "="]
    last = "" if last == "=" else last
    option, equals, value = last.partition("=")
    if last.startswith("--") and equals:
        return [f"{option}={found}" for found in _values(command, option, value, before, trainer_commands)]
    if before and before[-1].startswith("--") and not last.startswith("--"):
        found = _values(command, before[-1], last, before, trainer_commands)
        if found or not _is_flag(command, before[-1], trainer_commands):
            return found
    if last.startswith("-") or (not last and command in trainer_commands):
        return _in_stages(last, _option_names(command, before, trainer_commands))
    return _beginning(last, _arguments(command))


def _options(command: str, before: list[str], trainer_commands: list[str]) -> list[Option]:
    """The options of a command, those of a class that is named before included."""
    command = "fit" if command == "benchmark" and "--fit" in before else command
    if command == "ablate":
        own = tool_options(command)
        taken = {option.name for option in own} | {*NOT_FOR_ABLATE}
        return [*own, *(one for one in _options("fit", before, trainer_commands) if one.name not in taken)]
    if command in TOOLS:
        return tool_options(command)
    if command not in trainer_commands:
        return []
    try:
        return [option for options in sections(command, before).values() for option in options]
    except InputError:  # a class that has no source here
        return [option for options in sections(command, []).values() for option in options]


def _option_names(command: str, before: list[str], trainer_commands: list[str]) -> list[str]:
    names = [f"--{option.name}" for option in _options(command, before, trainer_commands)]
    return [*names, *FLAGS.get(command, ("--help",)), *(["--data", "--model"] if command in trainer_commands else [])]


def _is_flag(command: str, option: str, trainer_commands: list[str]) -> bool:
    taking = {f"--{one.name}" for one in _options(command, [], trainer_commands) if one.value}
    return option not in taking


def _values(command: str, option: str, typed: str, before: list[str], trainer_commands: list[str]) -> list[str]:
    """The values an option may take, as far as they are known."""
    name = option.removeprefix("--").replace("-", "_")
    if name == "help":
        return _beginning(typed, [*SECTIONS, "all"]) if command in trainer_commands else []
    if name == "config":
        return [*_beginning(typed, [recipe.name for recipe in recipes()]), *_paths(typed, (".yaml", ".yml"))]
    if name in ("ckpt_path", "resume"):
        words = ["best", "last", *_runs()] if name == "ckpt_path" else ["last", *_runs()]
        return [*_beginning(typed, words), *([] if typed.startswith(f"{RUNS}") else _paths(typed, (".ckpt",)))]
    if name == "grid":
        return [*_beginning(typed, GRID_NAMES), *_paths(typed, (".yaml", ".yml"))]
    if name == "logger":
        return _beginning(typed, LOGGERS)
    if name in ("model.model_name", "model"):
        return _beginning(typed, read_catalog().entries)
    found = next((one for one in _options(command, before, trainer_commands) if one.name == name), None)
    return _beginning(typed, found.choices) if found is not None else []


def _arguments(command: str) -> list[str]:
    """What stands without an option's name."""
    if command in ("models", "inspect"):
        return list(read_catalog().entries)
    if command == "configs":
        return [recipe.name for recipe in recipes()]
    return list(SCRIPTS) if command == "completion" else []


def _runs() -> Iterator[str]:
    """The folders of runs that have a checkpoint."""
    for path in sorted(RUNS.glob("**/version_*/checkpoints")):
        if any(path.glob("*.ckpt")):
            yield str(path.parent)


def _paths(typed: str, endings: tuple[str, ...]) -> list[str]:
    """Folders and files of a kind whose names begin as typed."""
    found = sorted(glob.glob(f"{glob.escape(os.path.expanduser(typed))}*")) if not typed.startswith("~") else []
    return [f"{path}/" if Path(path).is_dir() else path for path in found if Path(path).is_dir() or path.endswith(endings)]


def _in_stages(typed: str, names: list[str]) -> list[str]:
    """Up to the next dot where several options share the beginning: --trainer. before its forty options."""
    typed = typed.replace("-", "_").replace("__", "--", 1) if typed.startswith("--") else typed
    matching = _beginning(typed, names)
    staged = [name[: name.index(".", len(typed)) + 1] if "." in name[len(typed) :] else name for name in matching]
    stages = list(dict.fromkeys(staged))
    # One stage alone is no choice: go on
    return stages if len(stages) > 1 or stages == matching else _in_stages(stages[0], names) if stages else []


def _beginning(typed: str, words: Iterable[str]) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(typed)]
