"""The commands that are none of the Trainer's and whose parsers take seconds to import: what they take, one row each."""

from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from dropkey_cli.commands.own_options import OwnOption

SHAPES = list[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]] | None
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Tool:
    """A command.

    Args:
        arguments: What its usage line says after its name.
        description: What it does.
        options: Its options.
        settings: Class path of a dataclass whose fields are further options, by their prefix.
    """

    arguments: str
    description: str
    options: tuple[OwnOption, ...]
    settings: tuple[tuple[str, str], ...] = ()


def _option(name: str, kind: Any, default: Any, text: str, command: str) -> OwnOption:  # noqa: ANN401 - a type and its value
    return OwnOption(name, kind, default, text, (command,))


TOOLS = {
    "check": Tool(
        "ROOT [--OPTION VALUE ...]",
        "Read every image of a data set as training would and list what is wrong: files that cannot be read, the same image in "
        "two splits or with two labels. ROOT is a folder with train/, val/, test/, or with the classes; or a table. Exit code "
        "0: nothing is wrong; 1: something is; 2: no class folders, no table. No model and no config is needed.",
        (
            _option("data.root", str, None, "The same as ROOT, as the other commands spell it.", "check"),
            _option("json", None, None, "Print one object instead: everything that was found.", "check"),
            _option("num_workers", int, None, "Processes that read (default: one per core, at most 8).", "check"),
            _option("channels", int, 3, "Channels that training asks for.", "check"),
        ),
        (("data", "dropkey_cli.data.table_rows.TableOptions"),),
    ),
    "inspect": Tool(
        "MODEL [--OPTION VALUE ...]",
        "Where a model attends and how much DropKey would drop there. MODEL is timm's name of the network, e.g. "
        "vit_tiny_patch16_224, or hf-hub:USER/NAME or local-dir:FOLDER; no weights are allocated.",
        (
            _option("image_size", int | None, None, "Image height and width in pixels (default: the model's own).", "inspect"),
            _option("model_args", dict[str, Any] | None, None, "Further arguments of the network's constructor.", "inspect"),
            _option("masks", str | None, None, "Also draw masks of three layers into this file, e.g. masks.png.", "inspect"),
        ),
        (("dropkey", "dropkey_cli.method.settings.DropKeySettings"),),
    ),
    "benchmark": Tool(
        "[--OPTION VALUE ...]",
        "What DropKey costs on this machine, in time and memory: attention alone on built-in shapes or, with --model, a whole "
        "training step. dropkey benchmark --fit times a training run and says where its time goes.",
        (
            _option("model", str | None, None, "A network, as for inspect: time its training step instead.", "benchmark"),
            _option("fit", None, None, "Time a training run, with the options of dropkey fit; see --fit --help.", "benchmark"),
            _option("batch_size", PositiveInt | None, None, "Images per step, or B of every shape.", "benchmark"),
            _option("image_size", PositiveInt | None, None, "With --model: image height and width in pixels.", "benchmark"),
            _option("model_args", dict[str, Any] | None, None, "With --model: further constructor arguments.", "benchmark"),
            _option(
                "shapes", SHAPES, None, "Other shapes, e.g. [[8, 12, 197, 64]]: batch, heads, tokens, head dim.", "benchmark"
            ),
            _option("ratio", float, 0.1, "Drop ratio of every layer.", "benchmark"),
            _option(
                "precision", Precision | None, None, "Default: bf16-mixed on a GPU that has it, else 32-true.", "benchmark"
            ),
            _option("device", str, "auto", "auto, cpu, cuda or cuda:1.", "benchmark"),
            _option("num_threads", PositiveInt | None, None, "CPU threads; one by default on a CPU.", "benchmark"),
            _option("rounds", PositiveInt | None, None, "Samples of each figure.", "benchmark"),
            _option("compile", bool | None, None, "Also under torch.compile (default: true without --model).", "benchmark"),
            _option("json", str | None, None, "Also write everything, unrounded, into this file.", "benchmark"),
        ),
    ),
    "export": Tool(
        "--ckpt_path RUN --output DIR [--OPTION VALUE ...]",
        "Write a trained network in forms that run without dropkey. Each is loaded again and compared with the network on "
        "images; where it computes something else, nothing is written. Nothing is pushed anywhere unless asked.",
        (
            _option("ckpt_path", str | None, None, "Checkpoint file, run folder, or best or last of the newest run.", "export"),
            _option(
                "format",
                str,
                "timm",
                "timm: a folder that timm loads; onnx: model.onnx; torch: model.pt2 for torch.export.load; or several: "
                "timm,onnx.",
                "export",
            ),
            _option("output", str | None, None, "The folder to make; it must not be there yet.", "export"),
            _option(
                "images",
                str | None,
                None,
                "An image or a folder to compare on (default: the training images, if they are still there; else random ones).",
                "export",
            ),
            _option("push_to_hub", str | None, None, "Also upload the folder to the Hugging Face Hub, as USER/NAME.", "export"),
            _option("public", None, None, "With --push_to_hub: a new model is public, not private.", "export"),
            _option("num_threads", PositiveInt | None, None, "Threads per CPU operation.", "export"),
        ),
    ),
}
