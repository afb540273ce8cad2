import pytest
import yaml

from dropkey_cli.commands.yaml_text import load_yaml


@pytest.mark.parametrize(
    "text",
    ["", "null", "3", "[1, 2]", "a: {b: [1, null, x]}", "a: &x {b: 1}\nc: *x", "a: &x {b: 1}\nc: {<<: *x, b: 2}", "'3': x"],
)
def test_plain_yaml_is_read_as_by_yaml(text: str) -> None:
    assert load_yaml(text) == yaml.safe_load(text)


BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{x: *a{n}, y: *a{n}, z: *a{n}}}\n" for n in range(40))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {lr: 1}\nname: x\nmodel: {lr: 2}", "the key 'model' is given twice, in lines 1 and 3"),
        ("model:\n  lr: 1\n  lr: 1", "the key 'lr' is given twice, in lines 2 and 3"),
        ("a: &x {b: 1}\nc: {<<: *x, d: 1, d: 2}", "the key 'd' is given twice"),
        ("name: x\n3: 4", "line 2: the key '3' is no option's name"),
        ("null: 4", "line 1: the key 'null' is no option's name"),
        ("on: 4", "line 1: the key 'on' is no option's name"),
        ("[1]: 4", "line 1: the key 'a list or mapping' is no option's name"),
        ("model: {'': 4}", "line 1: the key '' is no option's name"),
        ("model: &x\n  lr: *x", "line 1: an alias .* stands inside what it repeats"),
        ('name: "a\\0b"', r"line 1: 'a\\x00b' is no text; take the null character"),
        ('name: "\\ud800"', r"line 1: .* is no text"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        (BOMB, r"aliases .* repeat more than 100000 values"),
        ("name: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
    ],
)
def test_what_would_be_guessed_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        load_yaml(text)
