"""Valid command lines, and strategies that break one part of one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import assume
from hypothesis import strategies as st

from dropkey_cli.commands.early_errors import known_options

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
TINY = ("--model.model_args={patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}", "--data.image_size=16",
    "--model.model_name=vit_tiny_patch16_224", "--model.pretrained=false", "--data.num_workers=0",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1")  # fmt: skip
# Each was refused, or ran to its end, before anything is broken; run in a folder beside flags/ and run/
BASES = {
    "quickstart": ("fit", "--config", QUICKSTART, "--trainer.fast_dev_run=true"),
    "folder": ("fit", "--data.root", "../flags", *TINY),
    "validate": ("validate", "--ckpt_path", "../run", "--data.root", "../flags", "--trainer.fast_dev_run=true"),
    "test": ("test", "--ckpt_path", "../run", "--data.root", "../flags", "--trainer.fast_dev_run=true"),
    "predict": ("predict", "--ckpt_path", "../run", "--data.root", "../flags/test/a"),
}
FITS = ("quickstart", "folder")


class Case(NamedTuple):
    """A valid line, what is added to break it, and a text that the message must hold."""

    base: str
    words: tuple[str, ...]
    named: str
    config: bytes | None = None
    env: tuple[str, str] | None = None


# One wrong name


def misspelt(word: str) -> st.SearchStrategy[str]:
    """The word with one letter inserted, left out, replaced or swapped with the next."""
    letter, position = st.sampled_from("abcdefghijklmnopqrstuvwxyz_"), st.integers(0, len(word) - 1)
    edits: list[Callable[[int, str], str]] = [
        lambda at, new: word[:at] + new + word[at:],
        lambda at, new: word[:at] + word[at + 1 :],
        lambda at, new: word[:at] + new + word[at + 1 :],
        lambda at, new: word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
    ]
    return st.builds(lambda edit, at, new: edit(at, new), st.sampled_from(edits), position, letter)


NAMES = ("name", "seed_everything", "num_threads", "checkpoint_minutes", "model.lr", "model.pretrained",
    "model.model_args", "model.dropkey.ratio", "model.dropkey.window_size", "data.batch_size", "data.image_size",
    "data.num_workers", "trainer.max_epochs", "trainer.accelerator", "trainer.callbacks",
    "trainer.gradient_clip_val")  # fmt: skip


@st.composite
def wrong_names(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(NAMES))
    *parents, last = name.split(".")
    wrong = ".".join([*parents, draw(misspelt(last))])
    assume(wrong not in known_options("predict", []) | known_options("fit", []) | {"data.root"} and not wrong.endswith("."))
    if draw(st.booleans()):
        wrong += draw(st.sampled_from(["", ".x", ".init_args.y"])) if name == "trainer.callbacks" else ""
        return Case(draw(st.sampled_from(list(BASES))), (draw(st.sampled_from([f"--{wrong}=1", f"--{wrong}"])),), f"--{wrong}")
    return configured(draw(st.sampled_from(list(BASES))), wrong, 1, named=f"--{wrong}")


def configured(base: str, name: str, value: object, *, named: str) -> Case:
    """The option as the line of a config."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return Case(base, ("--config", "c.yaml"), named, yaml.safe_dump(value, allow_unicode=True).encode())


# One wrong value


class Kind(NamedTuple):
    """Options that take the same values."""

    options: tuple[str, ...]
    takes: Callable[[Any], bool]


def is_number(value: object) -> bool:
    """By Python's own reading of it; beyond 64 bits, infinite or not a number is refused."""
    if isinstance(value, bool):
        return True  # Python's bool is an int, and jsonargparse follows it here and there
    if isinstance(value, str):
        try:
            return float(value.replace("_", "")) is not None
        except ValueError:
            return is_number(loaded) if not isinstance(loaded := load(value), str) else False
    return isinstance(value, int | float) and abs(value) < 1e18


def load(value: str) -> object:
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return value


KINDS = (
    Kind(("model.lr", "data.crop_pct"), lambda value: value is None or is_number(value) or load(str(value)) is None),
    Kind(("model.dropkey.ratio", "model.weight_decay", "data.hflip", "checkpoint_minutes"), is_number),
    Kind(("data.batch_size", "model.dropkey.window_size", "data.split_seed"), is_number),
    Kind(("data.image_size", "num_threads"), lambda value: value is None or is_number(value) or load(str(value)) is None),
    Kind(
        ("model.pretrained", "model.compile"), lambda value: str(value).lower() in ("true", "false", "yes", "no", "on", "off")
    ),
    Kind(("model.dropkey.structure",), lambda value: value in ("element", "key", "block", "cross")),
)
ODD_TEXTS = ("", " ", "-x", "--", "{", "[", "]", "*x", "&x", "a: b: c",
    "!!python/object/apply:os.system [touch ran]", "os.system", "\0", "a\0b", "\udcff", "☃😀", "‮txt", "x" * 9000,
    "nan", ".inf", "-.inf", "1e400", "9" * 40, "-" + "9" * 40, "[1, [2]]", "{a: {b: 1}}", "0x", "1,5", "1 2",
    "None", "~x", "${HOME}", "%s", "\n", "a\nb", "\\", "'", '"')  # fmt: skip
NOT_FINITE = [".nan", ".inf", "-.inf", "1e400", "9" * 40, "-" + "9" * 40]
TEXTS = st.sampled_from(ODD_TEXTS) | st.sampled_from(NOT_FINITE) | st.text(max_size=12)
OBJECTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=2),
    max_leaves=5,
)


@st.composite
def wrong_values(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(KINDS))
    option, base = draw(st.sampled_from(kind.options)), draw(st.sampled_from(FITS))
    if draw(st.booleans()):
        value = draw(TEXTS)
        assume(value in NOT_FINITE or not kind.takes(value))
        return Case(base, (f"--{option}={value}",), option.rpartition(".")[2])
    found = draw(OBJECTS)
    assume(found != {} and not kind.takes(found) and not (isinstance(found, str) and not found.isprintable()))
    return configured(
        base, option, found, named=option.rpartition(".")[2] if not isinstance(found, dict) else option.split(".")[0]
    )


TRAINER = {"max_epochs": ("-2", "x", "1.5", "inf"), "accelerator": ("gpuu", "", "☃", "None"),
    "strategy": ("x", "os.system", ""), "devices": ("x", "-1", "1000000000000", "9" * 40, "[0,0,x]"),
    "precision": ("x", "17", ""), "profiler": ("x", ""),
    "val_check_interval": ("x", "-1", "0", "99", "{a: 1}", "nan"),
    "limit_train_batches": ("-1", "1.5", "x", "nan"), "check_val_every_n_epoch": ("0", "-1", "x"),
    "gradient_clip_val": ("-1", "nan", "x"), "max_time": ("x", "{hours: x}"),
    "accumulate_grad_batches": ("0", "-1", "x"), "num_sanity_val_steps": ("-5", "x"),
    "overfit_batches": ("-1", "x"), "logger": ("x", "os.system", "[1]"),
    "callbacks": ("x", "os.system", "EarlyStoping", "[null]")}  # fmt: skip


@st.composite
def wrong_trainer_options(draw: st.DrawFn) -> Case:
    option = draw(st.sampled_from(sorted(TRAINER)))
    return Case("folder", (f"--trainer.{option}={draw(st.sampled_from(TRAINER[option]))}",), option)


WRONG_WORDS = [
    *((("--" + name,), name) for name in ("model.lr", "name", "trainer.max_epochs", "config", "data.batch_size")),
    (("--model.lr", "1", "--model.lr", "x"), "model.lr"), (("--model.lr=x", "--model.lr=y"), "model.lr"),
    (("--", "--model.lr", "1"), "--model.lr"), (("model.lr=1",), "model.lr=1"), (("-model.lr", "1"), "-m"),
    (("---model.lr=1",), "-model.lr"), (("--model.lr =1",), "model.lr "), (("--Model.lr=1",), "Model.lr"),
    (("--=1",), "--"), (("stray",), "stray"), (("☃",), "☃"), (("\0",), "\\x00"), (("--name", "\udcff"), "--name")]  # fmt: skip
NO_CHECKPOINTS = ["../flags", "nowhere", "../flags/val/a/0.png", "-x", "../cut.ckpt", "../empty.ckpt", "../other.ckpt",
    "../odd.ckpt", "/dev/null", "best", "last", "x" * 9000]  # fmt: skip
WRONG_PATHS = [
    *(("--config", path) for path in ("..", "nowhere.yaml", "/dev/null", "/dev/zero", "../flags/val/a/0.png", "../empty.ckpt")),
    *((option, path) for option in ("--ckpt_path", "--resume") for path in NO_CHECKPOINTS),
    *(("--name", path) for path in ("../x", "/x", "a/../../b", "x" * 300)),
    *(("--data.root", path) for path in ("nowhere", "", "x" * 9000, "../cut.ckpt", "../here"))]  # fmt: skip
WRONG_OUTPUTS = ["..", "/dev/null/p.csv", "x" * 300 + ".csv", "../flags"]


@st.composite
def wrong_words(draw: st.DrawFn) -> Case:
    words, named = draw(st.sampled_from(WRONG_WORDS))
    return Case(draw(st.sampled_from(FITS)), words, named)


@st.composite
def wrong_paths(draw: st.DrawFn) -> Case:
    if draw(st.integers(0, 5)) == 0:
        return Case("predict", (f"--output={draw(st.sampled_from(WRONG_OUTPUTS))}",), "--output")
    option, path = draw(st.sampled_from(WRONG_PATHS))
    return Case("folder", (f"{option}={path}",), path[:20] or option)


@st.composite
def wrong_environments(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(["RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_RESTART_COUNT"]))
    return Case(
        draw(st.sampled_from(list(BASES))), (), name, env=(name, draw(st.sampled_from(["x", "", "-1", "1.5", "²", "☃"])))
    )


HARMLESS = [("PL_GLOBAL_SEED", "abc"), ("SLURM_JOB_ID", "1"), ("COLUMNS", "0"), ("HOME", "/nowhere"), ("TERM", ""),
    ("LANG", "xx")]  # fmt: skip


@st.composite
def wrong_values_in_odd_environments(draw: st.DrawFn) -> Case:
    return draw(wrong_words())._replace(env=draw(st.sampled_from(HARMLESS)))


# One wrong config

BOMB = "a: &a {k: 1, l: 2}\n" + "".join(
    f"{new}: &{new} {{k: *{old}, l: *{old}, m: *{old}}}\n" for old, new in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)
BROKEN = [b"", b"# a comment\n", b"null", b"3", b"text", b"- 1\n- 2\n", b"name: [", b"name: {a", b"name: 'x",
    b"name: x\n\tlr: 1\n", b"model:\n\tlr: 1\n", b"a: 1\n--- \nb: 2\n", b"3: 4", b"1.5: x", b"null: x", b"true: x",
    b"[1, 2]: x", b"{a: 1}: x", b"'': x", b"' ': x", b"2020-01-01: x", b"model: {3: 4}", b"trainer: {null: 4}",
    b"model: &a\n  lr: *a\n", b"model: &a {x: [*a]}", b"model: {lr: *nowhere}",
    b"name: !!python/object/apply:os.system ['touch ran']", b"model: {lr: !!python/name:os.system x}",
    b"!!python/object/new:subprocess.Popen [[touch, ran]]", b"name: !foo x", b"name: 2020-13-45", b"\xff\xfe",
    bytes(range(256)), b"\x89PNG\r\n\x1a\n", b"name: \x00", b'name: "\\0"', b'name: "\\ud800"',
    b"name: " + b"[" * 3000, BOMB.encode()]  # fmt: skip
LINES = ["name: x", "num_threads: 1", "model:", "  lr: 0.1", "  dropkey:", "    ratio: 0.2", "trainer:", "  max_epochs: 1"]


@st.composite
def wrong_configs(draw: st.DrawFn) -> Case:
    content, base = draw(st.sampled_from(BROKEN)), draw(st.sampled_from(list(BASES)))
    if draw(st.booleans()):  # the same key once more
        at = draw(st.sampled_from([0, 1, 3, 5, 7]))
        content = "\n".join([*LINES[: at + 1], LINES[at], *LINES[at + 1 :]]).encode()
        return Case(base, ("--config", "c.yaml"), repr(LINES[at].split(":")[0].strip()), content)
    return Case(base, ("--config", "c.yaml"), "c.yaml", content)


PAYLOADS: list[tuple[str, dict[str, Any]]] = [("os.system", {"command": "touch ran"}),
    ("subprocess.Popen", {"args": ["touch", "ran"]}),
    ("os.mkdir", {"path": "ran"}), ("builtins.exec", {"source": "open('ran', 'w')"}),
    ("builtins.open", {"file": "ran", "mode": "w"}), ("nonsense.Thing", {}), ("pathlib.Path", {}),
    ("lightning.nowhere.X", {}), ("dropkey_cli.data.digits.Digitss", {})]  # fmt: skip
PLACES = ["model", "data", "model.dropkey", "trainer.logger", "trainer.callbacks", "trainer.plugins",
    "trainer.strategy", "trainer.profiler"]  # fmt: skip


@st.composite
def wrong_classes(draw: st.DrawFn) -> Case:
    class_path, arguments = draw(st.sampled_from(PAYLOADS))
    option, base = draw(st.sampled_from(PLACES)), draw(st.sampled_from(FITS))
    if draw(st.booleans()):
        value: object = {"class_path": class_path, "init_args": arguments}
        value = [value] if option == "trainer.callbacks" and draw(st.booleans()) else value
        return configured(base, option, value, named=option.rpartition(".")[2])
    words = [f"--{option}={class_path}", *(f"--{option}.{name}={argument}" for name, argument in arguments.items())]
    return Case(base, tuple(words), option.rpartition(".")[2])


BROKEN_CASES = st.one_of(
    wrong_names(),
    wrong_values(),
    wrong_trainer_options(),
    wrong_words(),
    wrong_paths(),
    wrong_environments(),
    wrong_values_in_odd_environments(),
    wrong_configs(),
    wrong_classes(),
)
