import os
import pickle
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.loader import adapt_to_chs

from dropkey_cli.errors import InputError
from dropkey_cli.models import availability
from dropkey_cli.models.factory import create_model, describe_weights, image_config, pretrained_config, with_channels

VIT = "test_vit.r160_in1k"


class Unreachable:
    """A session without a network."""

    def head(self, address: str, *, timeout: float) -> None:
        assert timeout <= 1  # whoever is offline is told at once
        raise ConnectionError(f"there is no network in tests, for {address}")


@pytest.fixture(autouse=True)
def no_network_and_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "get_session", Unreachable)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_tny_patch16_224",
            r"^'vit_tny_patch16_224' is not a model .*: give one of .*; did you mean 'vit_tiny_patch16_224'",
        ),
        ("", r"^'' is not a model"),
        ("hf_hub:timm/x", r"^'hf_hub:timm/x' is not a model"),
        ("test_vit.r160_in1", r"^test_vit has no weights 'r160_in1': give one of r160_in1k; did you mean 'r160_in1k'\?$"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pretrained_config(name)
    with pytest.raises(InputError, match=message):
        create_model(name, num_classes=2, image_size=32, pretrained=False)


@pytest.mark.parametrize(
    "name", ["test_vit", "resnet18", "swin_tiny_patch4_window7_224", "vit_small_patch14_dinov2", "xcit_nano_12_p16_224"]
)
def test_images_that_a_model_expects_are_timms(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    expected: Any = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    config = image_config(name)
    assert config.image_size == expected["input_size"][-1]
    assert (config.mean, config.std) == (expected["mean"], expected["std"])
    assert (config.interpolation, config.crop_pct) == (expected["interpolation"], expected["crop_pct"])


def test_every_timm_model_has_an_image_config() -> None:
    for name in timm.list_models():
        assert image_config(name).image_size > 0, name


@pytest.mark.parametrize(("name", "size"), [("test_vit", 160), ("test_vit", 48), ("test_resnet", 48), ("test_convnext", 64)])
def test_networks_for_any_number_of_classes_and_image_size(name: str, size: int) -> None:
    model = create_model(name, num_classes=3, image_size=size, pretrained=False)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 3)


def test_arguments_reach_the_constructor() -> None:
    model = create_model("test_vit", num_classes=3, image_size=32, pretrained=False, model_args={"depth": 2, "reg_tokens": 2})
    assert len(model.blocks) == 2  # type: ignore[arg-type]
    assert model.num_prefix_tokens == 3


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ({"dept": 2}, r"^timm cannot build test_vit with num_classes=3, dept=2.*TypeError: .*'dept'; --model.model_args null"),
        ({"embed_dim": 7}, r"^timm cannot build test_vit with .*embed_dim=7"),
        ({"img_size": 32}, r"^model_args has img_size: give the image size with --data.image_size"),
        ({"num_classes": 2}, r"^model_args has num_classes: the data say how many classes there are, 3"),
    ],
)
def test_wrong_arguments_are_refused(model_args: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model("test_vit", num_classes=3, image_size=32, pretrained=False, model_args=model_args)


def test_weights_are_described_with_source_and_licence() -> None:
    assert describe_weights("test_vit") == "r160_in1k weights from timm/test_vit.r160_in1k (licence: apache-2.0)"
    assert describe_weights("ceit_tiny_patch16_224") == "none are published"


def test_weights_that_do_not_exist() -> None:
    name = next(name for name in timm.list_models("vit_*") if not pretrained_config(name).has_weights)
    with pytest.raises(InputError, match=f"{name} has no pretrained weights: .* --model.pretrained false"):
        create_model(name, num_classes=3, image_size=image_config(name).image_size, pretrained=True, model_args={"depth": 1})


@pytest.mark.parametrize(("offline", "reason"), [(False, "does not answer: ConnectionError"), (True, "HF_HUB_OFFLINE is set")])
def test_weights_that_cannot_be_fetched_are_said_at_once(offline: bool, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
    with pytest.raises(InputError, match=rf"^the pretrained weights of test_vit \(timm/{VIT}\) .*{reason}.*pretrained false$"):
        create_model("test_vit", num_classes=3, image_size=160, pretrained=True)


def test_weights_at_an_address_of_their_own_that_cannot_be_fetched_are_said_at_once() -> None:
    message = r"t2t_vit_7 \(https://github.com/\S+T2T_ViT_7.pth.tar\) .*\(TORCH_HOME\) .*does not answer: ConnectionError"
    with pytest.raises(InputError, match=message):
        create_model("t2t_vit_7", num_classes=3, image_size=224, pretrained=True)


def test_weights_at_an_address_of_their_own_are_taken_from_the_cache(tmp_path: Path) -> None:
    saved = timm.create_model("t2t_vit_7").state_dict()
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict_ema": saved}, tmp_path / "torch" / "checkpoints" / "71.7_T2T_ViT_7.pth.tar")
    loaded = create_model("t2t_vit_7", num_classes=3, image_size=64, pretrained=True).state_dict()
    assert torch.equal(loaded["tokens_to_token.project.weight"], saved["tokens_to_token.project.weight"])
    assert loaded["head.weight"].shape[0] == 3


def test_wrong_arguments_are_found_before_anything_is_fetched() -> None:
    with pytest.raises(InputError, match="dept=2"):  # not the network's error
        create_model("test_vit", num_classes=3, image_size=160, pretrained=True, model_args={"dept": 2})


@pytest.mark.parametrize("size", [160, 48])
def test_weights_in_the_cache_need_no_network(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    saved = timm.create_model("test_vit").state_dict()
    cache = tmp_path / "hub" / f"models--timm--{VIT}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    save_file(saved, cache / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    model = create_model("test_vit", num_classes=3, image_size=size, pretrained=True)
    loaded = model.state_dict()
    assert torch.equal(loaded["blocks.0.attn.qkv.weight"], saved["blocks.0.attn.qkv.weight"])
    assert loaded["head.weight"].shape[0] == 3  # a new classifier
    assert model(torch.randn(1, 3, size, size)).shape == (1, 3)  # with resampled position embeddings


def test_weights_from_a_file_of_ones_own(tmp_path: Path) -> None:
    saved = timm.create_model("ceit_tiny_patch16_224").state_dict()
    file = tmp_path / "ceit.pth"
    arguments = {"pretrained_cfg_overlay": {"file": str(file)}}
    with pytest.raises(InputError, match=r"the weights '\S+ceit.pth' in model_args do not exist"):
        create_model("ceit_tiny_patch16_224", num_classes=3, image_size=64, pretrained=True, model_args=arguments)
    torch.save({"model": saved}, file)
    model = create_model("ceit_tiny_patch16_224", num_classes=3, image_size=64, pretrained=True, model_args=arguments)
    assert torch.equal(model.state_dict()["i2t.proj.weight"], saved["i2t.proj.weight"])
    assert describe_weights("ceit_tiny_patch16_224", arguments) == f"from {file}"


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_first_weights_for_other_channels_are_timms(channels: int, tmp_path: Path) -> None:
    saved = timm.create_model("test_vit").state_dict()
    torch.save(saved, tmp_path / "vit.pth")
    arguments = with_channels({"pretrained_cfg_overlay": {"file": str(tmp_path / "vit.pth")}}, channels)
    model = create_model("test_vit", num_classes=3, image_size=160, pretrained=True, model_args=arguments)
    theirs = timm.create_model("test_vit", pretrained=True, num_classes=3, **arguments)
    weights = model.state_dict()["patch_embed.proj.weight"]
    assert weights.shape[1] == channels
    assert torch.equal(weights, theirs.state_dict()["patch_embed.proj.weight"])
    if channels == 1:
        assert torch.equal(weights, saved["patch_embed.proj.weight"].sum(1, keepdim=True))


def test_statistics_for_other_channels_are_those_of_timms_loader() -> None:
    theirs: Any = adapt_to_chs
    for name in ("resnet18", "test_vit"):
        three = image_config(name)
        for channels in (1, 3, 5):
            config = image_config(name, channels=channels)
            assert config.channels == channels
            assert config.mean == pytest.approx(theirs(three.mean, channels))
            assert config.std == pytest.approx(theirs(three.std, channels))
    for channels in (0, 10**12):  # which would be as many numbers
        with pytest.raises(InputError, match=f"channels is {channels}; expected 1 to 10000"):
            image_config("test_vit", channels=channels)


def test_channels_are_an_argument_of_the_network_only_where_they_are_not_three() -> None:
    assert with_channels({"depth": 2}, 3) == {"depth": 2}
    assert with_channels({"depth": 2, "in_chans": 4}, 4) == {"depth": 2, "in_chans": 4}
    with pytest.raises(InputError, match=r"in_chans 1, but the images have 3 channels; .* give --data.channels 1"):
        with_channels({"in_chans": 1}, 3)


def test_a_server_whose_search_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    class Hanging:
        """A session whose requests end long after their timeout: none covers the search for a name's address."""

        def head(self, address: str, *, timeout: float) -> None:
            answer.wait(60)

    assert availability.PATIENCE + 0.5 <= 2  # seconds
    monkeypatch.setattr(availability, "PATIENCE", 0.2)
    monkeypatch.setattr(availability, "get_session", Hanging)
    with pytest.raises(InputError, match=r"cannot be fetched \(https://\S+ does not answer within 0.2 seconds\): connect once"):
        create_model("test_vit", num_classes=3, image_size=160, pretrained=True)  # whoever waits has an answer, and no error
    answer.set()


RAN = "code_ran"


class Payload:
    """Unpickling it makes a file in the current folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (RAN,)


# As the payload, after a step that raises a TypeError in torch's safe unpickler and is nothing in Python's own
TYPE_ERROR_FIRST = b"\x80\x02ccollections\nOrderedDict\n)RNb0cposix\nmkdir\nX\x08\x00\x00\x00code_ran\x85R."


def zipped(weights: bytes, path: Path) -> None:
    """As torch.hub has it for files from the time before torch's own format: a ZIP file with one file in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weights.pth", weights)


def hostile_files(folder: Path) -> Iterator[Path]:
    """Weights in every format that torch reads, with code."""
    network = timm.create_model("test_vit").state_dict()
    torch.save({**network, "more": Payload()}, folder / "zip.pth")
    torch.save({**network, "more": Payload()}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "pickle.bin").write_bytes(pickle.dumps(Payload()))
    (folder / "type_error.pth").write_bytes(TYPE_ERROR_FIRST)
    zipped(pickle.dumps(Payload()), folder / "zip_of_pickle.pth")
    zipped(TYPE_ERROR_FIRST, folder / "zip_of_type_error.pth")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), folder / "script.pth")  # type: ignore[no-untyped-call]  # untyped
    with tarfile.open(folder / "tar.pth", "w") as file:
        for name in ("pickle", "storages", "tensors"):
            (folder / name).write_bytes(pickle.dumps(Payload()))
            file.add(folder / name, name)
    (folder / "named.safetensors").write_bytes(pickle.dumps(Payload()))
    yield from sorted(path for path in folder.iterdir() if path.suffix)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_the_hostile_files_run_code_where_nobody_forbids_it(hostile: Path) -> None:
    for number, name in enumerate(("zip.pth", "pickle.bin", "type_error.pth")):
        assert name in [path.name for path in hostile_files(hostile)]
        with suppress(Exception):
            torch.load(hostile / name, weights_only=False)
        Path(RAN).rename(f"ran_{number}")
    with pytest.raises(TypeError):
        torch.load(hostile / "type_error.pth", weights_only=True)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("way", ["file", "hub", "hub_file", "url"])
def test_weights_never_run_code(way: str, hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_cache, hub_cache = Path(torch.hub.get_dir(), "checkpoints"), Path(hub.HF_HUB_CACHE, "models--a--b")
    for folder in (torch_cache, hub_cache / "refs", hub_cache / "snapshots/abc"):
        folder.mkdir(parents=True)
    (hub_cache / "refs/main").write_text("abc")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    for file in hostile_files(hostile):
        shutil.copy(file, torch_cache / file.name)
        shutil.copy(file, hub_cache / "snapshots/abc/pytorch_model.bin")
        shutil.copy(file, hub_cache / "snapshots/abc" / file.name)
        overlay = {
            "file": {"file": str(file)},
            "hub": {"hf_hub_id": "a/b"},
            "hub_file": {"hf_hub_id": "a/b", "hf_hub_filename": file.name},
            "url": {"hf_hub_id": None, "url": f"https://example.com/{file.name}"},
        }[way]
        with pytest.raises(InputError, match=r"^the pretrained weights of test_vit, from \S+.*, cannot be loaded \(.*false$"):
            create_model(
                "test_vit", num_classes=3, image_size=160, pretrained=True, model_args={"pretrained_cfg_overlay": overlay}
            )
        assert not Path(RAN).exists(), file


def test_loading_weights_leaves_the_environment_as_it_was(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    before = dict(os.environ)
    torch.save(Payload(), hostile / "a.pth")
    arguments = {"pretrained_cfg_overlay": {"file": str(hostile / "a.pth")}}
    with pytest.raises(InputError, match="the file is damaged, or loading it would run code that is in it"):
        create_model("test_vit", num_classes=3, image_size=160, pretrained=True, model_args=arguments)
    assert dict(os.environ) == before
    assert not Path(RAN).exists()


def test_weights_of_another_network_are_refused_in_a_sentence(hostile: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), hostile / "a.pth")
    arguments = {"pretrained_cfg_overlay": {"file": str(hostile / "a.pth")}}
    with pytest.raises(
        InputError,
        match=rf"of test_vit, from {hostile}/a.pth, cannot be loaded \(they are those of another network: Missing key",
    ):
        create_model("test_vit", num_classes=1000, image_size=160, pretrained=True, model_args=arguments)


@pytest.mark.parametrize(
    ("overlay", "description"),
    [
        ({"hf_hub_id": "a/b"}, "from a/b"),
        ({"hf_hub_id": "a/b", "hf_hub_filename": "c.bin"}, "from a/b, file c.bin"),
        ({"hf_hub_id": None, "url": "https://example.com/c.pth"}, "from https://example.com/c.pth"),
        ({"file": "c.pth"}, "from c.pth"),
        ({"crop_pct": 0.5}, "r160_in1k weights from timm/test_vit.r160_in1k (licence: apache-2.0)"),
    ],
)
def test_the_plan_names_the_weights_that_an_overlay_brings(overlay: dict[str, Any], description: str) -> None:
    assert describe_weights("test_vit", {"pretrained_cfg_overlay": overlay}) == description
    with pytest.raises(InputError, match=r"c\.pth.* do not exist|(a/b|example\.com|timm/test_vit).*cannot be fetched"):
        create_model("test_vit", num_classes=3, image_size=160, pretrained=True, model_args={"pretrained_cfg_overlay": overlay})


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        (
            {"checkpoint_path": "x.pth"},
            r"^model_args has checkpoint_path, which is no argument of a network: weights of your own",
        ),
        ({"pretrained_cfg": {"file": "x.pth"}}, "^model_args has pretrained_cfg, which is no"),
        ({"pretrained": True}, "^model_args has pretrained, which is no"),
        ({"pretrained_cfg_overlay": {"source": "local-dir"}}, r"overlay \{'source': 'local-dir'\}: give e.g. \{file: weights"),
        ({"pretrained_cfg_overlay": {"state_dict": {"a": 1}}}, "overlay .*state_dict.*: give e.g."),
        ({"pretrained_cfg_overlay": {"fiel": "x.pth"}}, "overlay {'fiel': 'x.pth'}: give e.g."),
        ({"pretrained_cfg_overlay": "x.pth"}, "overlay 'x.pth': give e.g."),
        ({"pretrained_cfg_overlay": {"file": 3}}, "^pretrained_cfg_overlay has file 3: give a text$"),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_other_ways_to_weights_are_closed(model_args: dict[str, Any], message: str, pretrained: bool) -> None:
    with pytest.raises(InputError, match=message):
        create_model("test_vit", num_classes=3, image_size=160, pretrained=pretrained, model_args=model_args)
