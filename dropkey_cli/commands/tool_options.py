"""The commands that are none of the Trainer's and whose parsers take seconds to import: what they take, one row each."""

from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from dropkey_cli.commands.own_options import OwnOption

SHAPES = list[tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]] | None
GRID_NAMES = ("quick", "paper", "full")
NOT_FOR_ABLATE = {
    "seed_everything": "give --seeds N for the seeds 0 … N - 1",
    "resume": "the same command again goes on with an ablation",
    "ckpt_path": "an ablation starts every training anew",
    "print_config": "give it to dropkey fit",
}
"""Options of fit that ablate refuses, and what to do instead."""
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
    "ablate": Tool(
        "[--grid GRID] [--seeds N] [OPTIONS of dropkey fit]",
        "Does DropKey help here, and with which ratio? Trains the same recipe, the OPTIONS of dropkey fit (dropkey fit --help "
        "lists them), over a grid of settings and several seeds, and compares every setting with training without dropping, "
        "seed by seed. Stopped, or given more seeds, the same command goes on and trains only what is missing.",
        (
            _option("name", str, "ablation", "Folder of the ablation, under runs/.", "ablate"),
            _option(
                "grid",
                str | None,
                None,
                "quick (default), paper (what the paper varies) or full; or a YAML file, a list such as [{ratio: [0.1, 0.3]}].",
                "ablate",
            ),
            _option(
                "what", str | None, None, "In the place of --grid: none, attention_dropout, dropkey; with commas.", "ablate"
            ),
            _option("ratio", str | None, None, "Drop ratios, e.g. 0.1,0.3.", "ablate"),
            _option("schedule", str | None, None, "decreasing, constant, increasing.", "ablate"),
            _option("match_mean", str | None, None, "false, true, or both: schedules scaled to the mean ratio.", "ablate"),
            _option("structure", str | None, None, "element, key, block, cross.", "ablate"),
            _option("window_size", str | None, None, "Sides of the windows of block, in tokens.", "ablate"),
            _option("remedy", str | None, None, "none, finish (without DropKey), monte_carlo.", "ablate"),
            _option("seeds", PositiveInt, 5, "Number of seeds: 0, 1, …", "ablate"),
            _option("jobs", PositiveInt | None, None, "Trainings at a time (default: one per GPU, or one per core).", "ablate"),
            _option("checkpoint", Literal["last", "best"], "last", "The weights that are compared: last or best.", "ablate"),
            _option(
                "metric", str | None, None, "What is compared, e.g. balanced_acc or loss (default: acc1, or map).", "ablate"
            ),
            _option("attention", bool, False, "Also measure every network's attention at inference: attention.png.", "ablate"),
            _option("mc_samples", PositiveInt, 20, "Masks that the remedy monte_carlo averages over.", "ablate"),
            _option("finish_without_dropkey", str, "0.1", "Share or epochs of the remedy finish, as for fit.", "ablate"),
            _option("finish_lr", str | None, None, "Learning rate of the remedy finish, as for fit.", "ablate"),
        ),
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
