"""``dropkey export``: a trained network as a folder for timm, an ONNX file or a torch.export program."""

import shlex
from pathlib import Path

import torch
from jsonargparse import Namespace

from dropkey_cli.checkpoints import find_checkpoint
from dropkey_cli.commands.command_line import check_words, underscored
from dropkey_cli.commands.config_errors import tool_parser
from dropkey_cli.errors import InputError, did_you_mean
from dropkey_cli.export.exporting import FORMS, check_output
from dropkey_cli.export.exporting import export as export_network
from dropkey_cli.export.hub import check_push, push
from dropkey_cli.export.onnx_file import require_onnx
from dropkey_cli.export.trained import Trained, read_trained


def export(words: list[str]) -> None:
    """Write the folder and print what is in it.

    Args:
        words: The words after ``dropkey export``.

    Raises:
        InputError: If an option is wrong, the folder is there already, or a package is missing.
        RunError: If an export computes something else than the network, or the hub refuses it.
    """
    check_words(words)
    options = tool_parser("export").parse_args(underscored(words))
    forms = _forms(options.format)
    _check(options, forms)
    output, path = Path(options.output), find_checkpoint(options.ckpt_path)
    torch.set_num_threads(options.num_threads or torch.get_num_threads())
    print(f"checkpoint  {path}", flush=True)
    trained = read_trained(path)
    title = options.push_to_hub or output.resolve().name
    exported, images = export_network(
        trained, forms, output, images=options.images, title=title, words=["dropkey", "export", *words]
    )
    print(f"compared    on {images}, as the network sees them, and on batches of 1 and 5 of them")
    for row in exported:
        print(f"{row.form:<12}{row.file}, {row.megabytes:.1f} MB, largest difference {row.difference:.2g}, {row.seconds:.1f} s")
    print(f"licence     {_licence(trained)}")
    if options.push_to_hub is not None:
        print(f"pushed to   {push(output, options.push_to_hub, public=options.public)}")
    if "timm" in forms:
        _print_use(trained, output)


def _check(options: Namespace, forms: list[str]) -> None:
    """Refuse what would fail after the work."""
    if options.output is None:
        raise InputError("no folder is given to write to: add --output DIR")
    check_output(Path(options.output))
    if "onnx" in forms:
        require_onnx()
    if options.push_to_hub is not None:
        check_push(options.push_to_hub)
    elif options.public:
        raise InputError("--public says who may see what is pushed: add --push_to_hub USER/NAME, or leave it out")


def _forms(given: str) -> list[str]:
    """The forms in ``--format``, each once."""
    forms = list(dict.fromkeys(form.strip() for form in given.strip("[]").split(",")))
    for form in forms:
        if form not in FORMS:
            raise InputError(
                f"--format {form!r} is unknown: give one of {', '.join(FORMS)}, or several with commas between them"
                f"{did_you_mean(form, FORMS)}"
            )
    return forms


def _licence(trained: Trained) -> str:
    if trained.licence:
        return f"{trained.licence}, that of the weights it was trained from"
    return "not stated: add that of the weights and data to README.md before you share it"


def _print_use(trained: Trained, output: Path) -> None:
    first = "import dropkey_cli.models; " if trained.is_ours else ""
    if trained.is_ours:
        print(f"note        timm has {trained.name} from dropkey only: import dropkey_cli.models first")
    print(f'use         {first}timm.create_model("local-dir:{output}", pretrained=True)')
    channels = trained.preprocessing.channels
    options = (
        f"--model.model_name {shlex.quote(f'local-dir:{output}')}{f' --data.channels {channels}' if channels != 3 else ''}"
    )
    print(f"            dropkey fit {options} --data.root YOUR_IMAGES")
