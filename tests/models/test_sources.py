import json
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import pytest
import timm
import torch
from timm.models import PretrainedCfg, save_for_hf

from dropkey_cli.errors import InputError
from dropkey_cli.models import availability, sources
from dropkey_cli.models.factory import create_model, describe_weights, image_config
from dropkey_cli.models.loading import taken_line
from dropkey_cli.models.sources import resolve_name, saved_beside

CLASSES = ["cat", "dog", "猫"]


class Unreachable:
    """A session without a network."""

    def head(self, address: str, *, timeout: float) -> None:
        raise ConnectionError("there is no network in tests")


@pytest.fixture(autouse=True)
def no_network_and_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "get_session", Unreachable)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)


def saved(folder: Path, **arguments: Any) -> torch.nn.Module:  # noqa: ANN401
    """A model in a folder, as timm saves it; gives it."""
    torch.manual_seed(5)
    model: torch.nn.Module = timm.create_model("test_vit", num_classes=3, **{"img_size": 64, "depth": 2, **arguments})
    data: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.7, "interpolation": "bilinear"}
    if arguments.get("in_chans"):
        data |= {"mean": (0.1,), "std": (0.4,)}
    save_for_hf(model, str(folder), model_config={"label_names": CLASSES}, safe_serialization=True, data_config=data)
    return model.eval()


def in_the_cache(folder: Path) -> None:
    """As if the model me/lions had been fetched from the hub."""
    (folder / "hub/models--me--lions/refs").mkdir(parents=True)
    (folder / "hub/models--me--lions/refs/main").write_text("abc")
    saved(folder / "hub/models--me--lions/snapshots/abc")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k", "nonsense"])
def test_names_without_a_source_stay(name: str) -> None:
    assert resolve_name(name, {"depth": 3}) == (name, {"depth": 3})
    assert resolve_name(name) == (name, None)


@pytest.mark.parametrize(
    "arguments", [{}, {"dynamic_img_size": True}, {"in_chans": 1}, {"class_token": False, "global_pool": "avg"}]
)
def test_a_folder_is_the_network_that_timm_makes_of_it(arguments: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path / "m", **arguments)
    name, model_args = resolve_name(f"local-dir:{tmp_path / 'm'}")
    assert name == "test_vit"
    assert json.loads(json.dumps(model_args)) == model_args  # plain: it goes into config.yaml and checkpoints
    network = create_model(
        name, num_classes=3, image_size=64, pretrained=True, model_args=model_args, class_names=CLASSES
    ).eval()
    images = torch.randn(2, arguments.get("in_chans", 3), 64, 64)
    assert torch.equal(network(images), model(images))
    assert taken_line(network) == f"all {len(model.state_dict())} tensors are taken, the classifier's too"
    image = image_config(name, model_args)
    assert (image.image_size, image.crop_pct, image.interpolation) == (64, 0.7, "bilinear")
    grey = "in_chans" in arguments
    assert (image.mean, image.std) == ((0.1,) * 3 if grey else (0.1, 0.2, 0.3), (0.4,) * 3 if grey else (0.4, 0.5, 0.6))


@pytest.mark.parametrize("classes", [["cat", "dog", "猫", "lion"], ["cat", "dog", "lion"], ["dog", "cat", "猫"]])
def test_other_classes_get_a_new_classifier(classes: list[str], tmp_path: Path) -> None:
    model = saved(tmp_path / "m")
    name, args = resolve_name(f"local-dir:{tmp_path / 'm'}")
    network = create_model(name, num_classes=len(classes), image_size=64, pretrained=True, model_args=args, class_names=classes)
    state, before = network.state_dict(), model.state_dict()
    assert not torch.equal(state["head.weight"][:3], before["head.weight"])
    assert all(torch.equal(state[key], before[key]) for key in state if not key.startswith("head."))
    assert taken_line(network) == f"{len(state) - 2} of {len(state)} tensors are taken; head.weight, head.bias start anew"


def test_another_size_resamples_the_position_embeddings(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    name, args = resolve_name(f"local-dir:{tmp_path / 'm'}")
    for size in (160, 48):  # 160 is the architecture's own
        network = create_model(name, num_classes=3, image_size=size, pretrained=True, model_args=args)
        assert network(torch.randn(1, 3, size, size)).shape == (1, 3)


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    own = {"drop_path_rate": 0.2, "depth": 1, "pretrained_cfg_overlay": {"crop_pct": 0.9}}
    name, args = resolve_name(f"local-dir:{tmp_path / 'm'}", own)
    assert args is not None
    assert args["depth"] == 1
    assert image_config(name, args).crop_pct == 0.9
    assert len(own) == 3  # theirs is left alone


def test_weights_named_twice(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    with pytest.raises(
        InputError, match=r"names its weights, and so does model_args, with file 'x.pth': leave one of them out"
    ):
        resolve_name(f"local-dir:{tmp_path / 'm'}", {"pretrained_cfg_overlay": {"file": "x.pth"}})


@pytest.mark.parametrize("name", ["hf-hub:me/lions", "hf_hub:me/lions"])
def test_a_model_of_the_hub_in_the_cache_needs_no_network(name: str, tmp_path: Path) -> None:
    in_the_cache(tmp_path)
    architecture, args = resolve_name(name)
    assert architecture == "test_vit"
    assert describe_weights(architecture, args) == "from me/lions (licence: apache-2.0)"
    assert image_config(architecture, args).mean == (0.1, 0.2, 0.3)


def test_weights_of_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    in_the_cache(tmp_path)
    name, args = resolve_name("hf-hub:me/lions")
    network = create_model(name, num_classes=3, image_size=64, pretrained=True, model_args=args, class_names=CLASSES)
    expected = saved(tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())


def test_a_config_is_fetched_where_there_is_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "m")
    asked: list[tuple[str, str, str | None]] = []

    def download(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(tmp_path / "m" / name)

    monkeypatch.setattr(availability, "get_session", lambda: type("Session", (), {"head": lambda *_, **__: None})())
    monkeypatch.setattr(sources, "hf_hub_download", download)
    assert resolve_name("hf-hub:me/lions@v1")[1]["pretrained_cfg_overlay"]["hf_hub_id"] == "me/lions@v1"  # type: ignore[index]
    assert asked == [("me/lions", "config.json", "v1")]

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError("404 Client Error\nmore")

    monkeypatch.setattr(sources, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"^'hf-hub:me/x': the hub gives no config.json \(PermissionError: 404 Client Error\)"):
        resolve_name("hf-hub:me/x")


def test_offline_is_said_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"hf-hub:me/lions \(me/lions\) are not in the cache .* does not answer: ConnectionError"
    ):
        resolve_name("hf-hub:me/lions")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local-dir:nowhere", r"^'local-dir:nowhere': there is no folder 'nowhere'; check the path$"),
        ("local-dir:.", r"^'local-dir:.' has no config.json: .*give a model that dropkey export or timm saved$"),
        ("me/lions", r"Use 'hf-hub:me/lions' to load from the Hub or 'local-dir:me/lions'"),
        ("ftp:lions", r"^Unknown model source 'ftp' .*hf-hub:USER/NAME or local-dir:FOLDER"),
        ("hf-hub:", r"has no model id"),
    ],
)
def test_sources_that_are_none(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        resolve_name(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: "{", "is not timm's"),
        (lambda config: [1], "is not timm's"),
        (lambda config: {"model_type": "bert", "architectures": ["Bert"]}, r"is not timm's \(KeyError: 'architecture'\)"),
        (lambda config: {**config, "architecture": 3}, "has architecture 3, which cannot be"),
        (lambda config: {**_with(config, input_size=[3, 64]), "model_args": {}}, r"has input_size \[3, 64\], which cannot be"),
        (lambda config: _with(config, mean=["a"]), r"has mean \['a'\], which cannot be"),
        (lambda config: _with(config, crop_pct="x"), "has crop_pct 'x', which cannot be"),
        (lambda config: {**config, "label_names": {"a": "b"}}, "is not timm's"),
        (lambda config: {**config, "model_args": [3]}, "is not timm's"),
    ],
)
def test_a_strangers_config(change: Any, message: str, tmp_path: Path) -> None:  # noqa: ANN401
    saved(tmp_path / "m")
    file = tmp_path / "m/config.json"
    changed = change(json.loads(file.read_text()))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(InputError, match=f"its config.json {message}"):
        resolve_name(f"local-dir:{tmp_path / 'm'}")


def test_a_strangers_config_says_neither_where_weights_lie_nor_what_is_no_argument(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    file = tmp_path / "m/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(_with(config, url="https://evil", hf_hub_id="evil/x", custom_load=True, state_dict={})))
    args = resolve_name(f"local-dir:{tmp_path / 'm'}")[1]
    assert "evil" not in json.dumps(args)
    assert "custom_load" not in json.dumps(args)
    file.write_text(json.dumps({**config, "model_args": {"checkpoint_path": "evil.pth"}}))
    name, args = resolve_name(f"local-dir:{tmp_path / 'm'}")
    with pytest.raises(InputError, match="model_args has checkpoint_path, which is no argument of a network"):
        create_model(name, num_classes=3, image_size=64, pretrained=False, model_args=args)


def test_label_names_by_number(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    file = tmp_path / "m/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "label_names": {"10": "c", "2": "b", "0": "a"}}))
    beside = saved_beside(PretrainedCfg(file=str(tmp_path / "m/model.safetensors")))
    assert beside is not None
    assert beside.class_names == ["a", "b", "c"]


def test_nothing_is_known_of_weights_that_lie_alone(tmp_path: Path) -> None:
    assert saved_beside(PretrainedCfg(file=str(tmp_path / "x.pth"))) is None
    assert saved_beside(PretrainedCfg(hf_hub_id="me/lions")) is None
    assert saved_beside(PretrainedCfg(url="https://example.com/x.pth")) is None
    (tmp_path / "config.json").write_text("no JSON")
    assert saved_beside(PretrainedCfg(file=str(tmp_path / "x.pth"))) is None


def _with(config: dict[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return {**config, "pretrained_cfg": {**config["pretrained_cfg"], **changes}}
