"""``dropkey fit --help``: the options of our own, without Lightning's several hundred lines."""

from jsonargparse import ArgumentParser

from dropkey_cli.commands.defaults import default_classes
from dropkey_cli.commands.own_options import own_options
from dropkey_cli.commands.signatures import outline
from dropkey_cli.method.settings import DropKeySettings

MORE = """
--model.dropkey null trains without DropKey.
Options are written --name value; in a YAML file for --config, model.lr becomes a lr under model.
Further Trainer options, e.g. --trainer.devices 2, --trainer.precision bf16-mixed, --trainer.callbacks: --help_all lists them.
--data.root labels.csv --help lists the options of a table (CSV, TSV, JSONL, parquet) in the place of a folder's.
--print_config prints the whole configuration as YAML. Another data set or task: --data CLASS_PATH, --model CLASS_PATH.
"""


def print_help(command: str, words: list[str]) -> None:
    """Print the options of a Trainer command that people use.

    Args:
        command: fit, validate, test or predict.
        words: Its options: a table as --data.root has other options than a folder.
    """
    classes = default_classes(command, words)
    parser = ArgumentParser(prog=f"dropkey {command}", description=f"dropkey {command}: the common options.", add_help=False)
    parser.add_argument("--config", help="YAML file with options; several are merged, the command line wins.")
    if command == "fit":
        parser.add_argument("--resume", help="Run folder, or last: go on with a run that was stopped, exactly where it was.")
        parser.add_argument("--trainer.max_epochs", default=20, help="Passes over the training images.")
    parser.add_argument("--ckpt_path", help="Checkpoint file, run folder, or best or last of the newest run.")
    for option in own_options(command):
        if command in option.commands:
            parser.add_argument(f"--{option.name}", type=option.type, default=option.default, help=option.help)
    parser.add_argument("--trainer.accelerator", default="auto", help="cpu, gpu, mps or auto.")
    parser.add_class_arguments(outline(classes["model"]), "model", skip={"dropkey"})
    # Spelled out, because jsonargparse hides the fields of an optional group
    parser.add_class_arguments(DropKeySettings, "model.dropkey")
    parser.add_class_arguments(outline(classes["data"]), "data")
    parser.print_help()
    print(MORE, end="")
