"""The nearest right word for a wrong one: options by their whole and their last name, and by what other tools call them."""

import difflib
from collections.abc import Iterable

# What timm, ultralytics, transformers and habit call it
OTHER_NAMES = {
    "arch": "model.model_name",
    "backbone": "model.model_name",
    "model": "model.model_name",
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "per_device_train_batch_size": "data.batch_size",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "weights": "ckpt_path",
    "data_dir": "data.root",
    "dataset": "data.root",
    "folder": "data.root",
    "path": "data.root",
    "epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "amp": "trainer.precision",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "clip_grad": "trainer.gradient_clip_val",
    "grad_accum_steps": "trainer.accumulate_grad_batches",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "imgsz": "data.image_size",
    "img_size": "data.image_size",
    "input_size": "data.image_size",
    "learning_rate": "model.lr",
    "wd": "model.weight_decay",
    "smoothing": "model.label_smoothing",
    "drop_ratio": "model.dropkey.ratio",
    "ratio": "model.dropkey.ratio",
    "seed": "seed_everything",
    "workers": "data.num_workers",
    "out": "output",
    "output_dir": "name",
    "project": "name",
}


def near_options(given: str, known: Iterable[str]) -> str:
    """The nearest options as the end of a sentence: "; did you mean '--a' or '--b'?", or nothing where none is near.

    Args:
        given: A name without its dashes, dotted.
        known: The names there are.
    """
    known = sorted(set(known) - {given})
    name = given.replace("-", "_")
    last = name.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for option in known:
        by_last.setdefault(option.rpartition(".")[2], []).append(option)
    found = [OTHER_NAMES[word] for word in (name, last) if OTHER_NAMES.get(word) in known]
    found += by_last.get(last, [])
    found = found or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if not found:
        found = [option for word in difflib.get_close_matches(last, by_last, n=2, cutoff=0.75) for option in by_last[word]]
    near = [repr(f"--{option}") for option in dict.fromkeys(found)][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""
