import json
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
import timm

from dropkey_cli import catalog as catalog_file
from dropkey_cli.catalog import Catalog, read_catalog
from dropkey_cli.cli import main
from dropkey_cli.commands import models as command
from dropkey_cli.commands.models import find_names, models
from dropkey_cli.errors import InputError

WEIGHTS = "vit_base_patch16_224"
SHIPPED = read_catalog()
NEEDS_TIMM_OF_TABLE = pytest.mark.skipif(timm.__version__ != SHIPPED.timm_version, reason="the table is of another timm")


def listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The objects that ``dropkey models --json`` prints."""
    assert main(["models", "--json", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found: list[dict[str, Any]] = json.loads(out)
    return found


def rows(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The lines of the table by their first word."""
    assert main(["models", *words]) == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}


def test_json_of_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    (vit,) = listed(["vit_tiny_patch16_224"], capsys)
    assert vit == {
        "name": "vit_tiny_patch16_224",
        # Patch embedding, class token, positions, 12 blocks, norm, classifier
        "parameters": 147_648 + 192 + 37_824 + 12 * 444_864 + 384 + 193_000,
        "input_size": [3, 224, 224],
        "pretrained": ["augreg_in21k_ft_in1k", "augreg_in21k"],
        "licence": "apache-2.0",
        "attention_layers": 12,
        "reason": None,
    }


def test_json_says_why_a_model_has_no_layer(capsys: pytest.CaptureFixture[str]) -> None:
    xcit, resnet = listed(["xcit_nano_12_p16_224", "resnet18"], capsys)
    assert xcit["attention_layers"] == resnet["attention_layers"] == 0
    assert "XCA attends over channels" in xcit["reason"]
    assert resnet["reason"] == "no attention"


def test_without_a_pattern_every_architecture_is_listed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    table = rows([], capsys)
    assert table.keys() >= set(timm.list_models())
    for name in timm.list_models(pretrained=True):
        architecture, _, tag = name.partition(".")
        if timm.get_pretrained_cfg(architecture).tag == tag:  # type: ignore[union-attr]
            assert f" {tag} " in table[architecture]


def test_the_table_has_size_weights_licence_and_a_note_where_no_layer_is(capsys: pytest.CaptureFixture[str]) -> None:
    table = rows([WEIGHTS, "vit_base_patch16_sapiens2", "vit_gigantic_patch14_224", "resnet18", "resnet34"], capsys)
    assert table[WEIGHTS].split()[1:] == ["12", "86.6", "M", "224", "augreg2_in21k_ft_in1k", "+9", "(apache-2.0)"]
    assert "1024 × 768" in table["vit_base_patch16_sapiens2"]  # height × width
    assert table["vit_gigantic_patch14_224"].split()[1:] == ["48", "1,844.4", "M", "224", "none"]
    assert [table[name].split()[1:3] for name in ("resnet18", "resnet34")] == [["0", "[1]"]] * 2
    assert table["[1]"] == "[1] no attention"


@pytest.mark.parametrize("pattern", ["vit_tiny*", "*dinov?_*", "swin_[st]*", "vit_base_patch16_224.*_in1k"])
def test_wildcards(pattern: str) -> None:
    known = timm.list_pretrained() if "." in pattern else timm.list_models()
    expected = [name for name in known if fnmatchcase(name, pattern)]
    assert len(expected) > 1
    assert find_names([pattern], SHIPPED) == expected


def test_a_name_is_itself_and_a_part_of_names_all_of_them() -> None:
    assert find_names(["resnet18"], SHIPPED) == ["resnet18"]  # not skresnet18 and so on
    assert {"deit_tiny_patch16_224", "deit3_base_patch16_224"} <= set(find_names(["deit"], SHIPPED))
    assert all("deit" in name for name in find_names(["deit"], SHIPPED))


def test_several_patterns_list_each_name_once_and_options_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnet18", "--json", "vit_tiny_patch16_*", "resnet18"]) == 0
    names = [model["name"] for model in json.loads(capsys.readouterr().out)]
    assert names == ["resnet18", *timm.list_models("vit_tiny_patch16_*")]


def test_a_dot_lists_weights_with_their_own_size_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    found = {model["name"]: model for model in listed([f"{WEIGHTS}.*", "eva02_tiny_patch14_336.mim_in22k_ft_in1k"], capsys)}
    assert [name for name in found if name.startswith(WEIGHTS)] == timm.list_pretrained(f"{WEIGHTS}.*")
    mae = found[f"{WEIGHTS}.mae"]
    assert (mae["pretrained"], mae["licence"]) == (["mae"], "cc-by-nc-4.0")
    assert mae["attention_layers"] == 12
    assert found["eva02_tiny_patch14_336.mim_in22k_ft_in1k"]["input_size"] == [3, 336, 336]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["vit_tny_patch16_224"],
            "^'vit_tny_patch16_224' matches no model that timm .* has; did you mean 'vit_tiny_patch16_224'",
        ),
        (["resnet18", "qq*"], r"^'qq\*' matches no model that timm \S+ or dropkey has: dropkey models lists all$"),
        (["test_vit.r160_in2k"], r"^'test_vit.r160_in2k' matches no model .*did you mean 'test_vit.r160_in1k'"),
        (["--jsn"], "unrecognized arguments: --jsn"),
    ],
)
def test_what_matches_nothing_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        models(words)


def test_with_another_timm_the_list_is_what_that_timm_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["vit_base_patch16_224", "resnet18", "t2t_vit_14", "vit_gigantic_patch14_224"]
    shipped = listed(names, capsys)
    monkeypatch.setattr(catalog_file, "version", lambda _: "99.0")
    entries = SHIPPED.entries | {
        "resnet18": replace(SHIPPED.entries["resnet18"], pretrained=("gone_in1k",), licence="gone", input_size=(1, 2, 3)),
        "gone_vit": replace(SHIPPED.entries["test_vit"], name="gone_vit"),
    }
    monkeypatch.setattr(command, "read_catalog", lambda: Catalog(SHIPPED.timm_version, entries))
    assert listed(names, capsys) == shipped
    with pytest.raises(InputError, match="'gone_vit' matches no model"):
        models(["gone_vit"])


def test_architectures_that_the_table_lacks_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = listed(["test_vit"], capsys)
    # What the table has is not measured again
    others = {"resnet18": replace(SHIPPED.entries["resnet18"], parameters=1)}
    monkeypatch.setattr(command, "read_catalog", lambda: Catalog("0.0.1", others))
    assert main(["models", "--json", "test_vit", "test_vit.r160_in1k", "resnet18"]) == 0
    out, err = capsys.readouterr()
    vit, _, resnet = json.loads(out)
    assert [vit] == shipped
    assert resnet["parameters"] == 1
    assert err == "dropkey's table lacks 1 of these: measuring, about a second each\n"


def test_a_narrow_terminal_breaks_no_usual_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for variable, value in {"TTY_COMPATIBLE": "1", "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(variable, value)
    name = "swin_tiny_patch4_window7_224"
    assert rows([name, "vit_gigantic_patch14_clip_quickgelu_224"], capsys)[name].split()[1:4] == ["12", "28.3", "M"]
    main(["models"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@NEEDS_TIMM_OF_TABLE
@pytest.mark.parametrize("words", [[], ["--json", "vit_*"], ["vit_tny_patch16_224"], ["--help"]])
def test_the_list_needs_no_timm_and_no_torch(words: list[str]) -> None:
    program = f"""
import sys
from dropkey_cli.cli import main
main(["models", *{words}])
sys.exit(not {{"torch", "timm", "lightning"}}.isdisjoint(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_help_says_what_a_pattern_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--help"]) == 0
    assert "usage: dropkey models [-h] [--json] [PATTERN ...]" in capsys.readouterr().out
