"""The model card, README.md: what the network is, how well it does, how to use it, whom to cite."""

import os
import shlex
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from dropkey_cli.export.trained import Trained

# Those among timm's licences that the hub has an identifier for
_HUB_LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "apple-ascl",
    "apple-amlr",
    "gemma",
    "unknown",
}
CITATION = """\
@inproceedings{li2023dropkey,
  title     = {DropKey for Vision Transformer},
  author    = {Li, Bonan and Hu, Yinhan and Nie, Xuecheng and Han, Congying and Jiang, Xiangjian and Guo, Tiande
               and Liu, Luoqi},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {22700--22709},
  year      = {2023},
  note      = {arXiv:2208.02646}
}"""
TIMM_USAGE = """\
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # from the hub: "hf-hub:USER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
image = transform(Image.open("image.jpg").convert("MODE")).unsqueeze(0)
with torch.inference_mode():
    logits = model(image)[0]
"""
_ANSWERS = {
    "softmax": """\
best = int(logits.argmax())
print(model.pretrained_cfg["label_names"][best], float(logits.softmax(-1)[best]))""",
    "sigmoid / sum(sigmoid)": """\
best, scores = int(logits.argmax()), logits.sigmoid()
print(model.pretrained_cfg["label_names"][best], float(scores[best] / scores.sum()))""",
    "sigmoid": """\
for name, probability in zip(model.pretrained_cfg["label_names"], logits.sigmoid().tolist()):
    print(name, probability)  # each class is a yes or no of its own""",
}
ONNX_USAGE = """\
import json
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
# images: float32 (batch, CHANNELS, height, width); preprocessing.json says how to make them
(logits,) = session.run(["logits"], {"images": images})"""
TORCH_USAGE = """\
import torch

model = torch.export.load("model.pt2").module()
# images: float32 (batch, CHANNELS, height, width); preprocessing.json says how to make them
logits = model(images)"""
USAGE = {"timm": TIMM_USAGE, "onnx": ONNX_USAGE, "torch": TORCH_USAGE}


def model_card(trained: Trained, forms: list[str], *, title: str, words: list[str]) -> str:
    """The card as Markdown with the hub's front matter.

    Args:
        trained: The network.
        forms: Which of timm, onnx and torch are there.
        title: Its name.
        words: The command that exported it.
    """
    parts = [
        f"---\n{front_matter(trained, forms, title=title)}\n---",
        f"# {title}",
        f"{trained.name}, trained with [DropKey](https://arxiv.org/abs/2208.02646) by dropkey.",
        "\n".join(f"- **{name}:** {text}" for name, text in _facts(trained)),
        *_metrics(trained),
        "## Use",
        *(f"```python\n{_usage(form, trained, title)}\n```" for form in forms),
        *_note_on_ours(trained, forms),
        "## Training",
        f"```yaml\n{_config(trained)}```",
        f"Exported with\n\n```bash\n{shlex.join(map(_command_word, words))}\n```",
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(trained: Trained, forms: list[str], *, title: str) -> str:
    """What the hub reads of a card, as YAML."""
    known = trained.licence in _HUB_LICENCES
    results = [
        EvalResult(
            "image-classification", "imagefolder", _data_name(trained), name, round(value, 6), dataset_split="validation"
        )
        for name, value in trained.metrics.items()
    ]
    card = ModelCardData(
        tags=["image-classification", "dropkey", *forms],
        library_name={"timm": "timm", "onnx": "onnx", "torch": "pytorch"}["timm" if "timm" in forms else forms[0]],
        pipeline_tag="image-classification",
        license=trained.licence if known or trained.licence is None else "other",
        license_name=None if known else trained.licence,
        base_model=None if trained.base is None else trained.base.partition("@")[0],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return card.to_yaml(line_break="\n")


def _usage(form: str, trained: Trained, title: str) -> str:
    channels = trained.preprocessing.channels
    text = USAGE[form] + (_ANSWERS[trained.activation] if form == "timm" else "")
    text = text.replace("CHANNELS", str(channels)).replace("MODE", {1: "L", 4: "RGBA"}.get(channels, "RGB"))
    return text.replace("USER/NAME", title if "/" in title else "USER/NAME")


def _facts(trained: Trained) -> Iterator[tuple[str, str]]:
    image, description = trained.preprocessing, trained.description
    names = trained.class_names
    yield "Classes", f"{len(names)}: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
    if counts := description.get("images"):
        yield "Images", ", ".join(f"{split} {number}" for split, number in counts.items())
    yield "Parameters", f"{sum(parameter.numel() for parameter in trained.network.parameters()) / 1e6:.2f} M"
    size, crop = (
        f"{image.image_size} × {image.image_size}",
        f"{image.interpolation}, crop {image.crop_pct:g} ({image.crop_mode})",
    )
    yield "Input", f"{size} pixels, {crop}, mean {_numbers(image.mean)}, std {_numbers(image.std)}"
    yield "Trained from", (trained.base or "weights of one's own") if trained.pretrained else "scratch"
    yield "Licence", f"{trained.licence}, that of the weights it was trained from" if trained.licence else "not stated"
    dropkey = description.get("dropkey")
    yield "DropKey", "none" if not dropkey else ", ".join(f"{name} {value}" for name, value in dropkey.items() if value != [])
    if trained.epoch is not None:
        yield "Epochs", str(trained.epoch)
    yield "Versions", ", ".join(f"{name} {version}" for name, version in description.get("versions", {}).items())


def _metrics(trained: Trained) -> Iterator[str]:
    if trained.metrics:
        yield (
            "## Metrics\n\nOn the validation images, at the epoch of this checkpoint.\n\n| metric | value |\n|---|---|\n"
            + "\n".join(f"| {name} | {value:.4f} |" for name, value in trained.metrics.items())
        )


def _note_on_ours(trained: Trained, forms: list[str]) -> Iterator[str]:
    if trained.is_ours and "timm" in forms:
        yield (
            f"timm has {trained.name} from dropkey only: `pip install dropkey`, and `import dropkey_cli.models` before "
            "`timm.create_model`."
        )


def _config(trained: Trained) -> str:
    """The options of data and model; of paths, which are nobody else's business, the last part."""
    return str(yaml.safe_dump(_without_paths(trained.description["config"]), sort_keys=False, allow_unicode=True))


def _without_paths(value: Any) -> Any:  # noqa: ANN401 - any part of a config
    if isinstance(value, dict):
        return {name: _without_paths(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    is_path = isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", "..")))
    return os.path.basename(value.rstrip("/\\")) if is_path else value


def _command_word(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name}{equals}{_without_paths(value)}" if equals else str(_without_paths(word))


def _data_name(trained: Trained) -> str:
    data = trained.description["config"]["data"]
    root = data.get("init_args", {}).get("root")
    return os.path.basename(root.rstrip("/\\")) if isinstance(root, str) else str(data["class_path"]).rpartition(".")[2].lower()


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
