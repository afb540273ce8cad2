"""Reads YAML as people mean it: what would silently win, be guessed or grow without end is an error with its line."""

from typing import Any

import yaml

MAX_NODES = 100_000
"""Values that a file may hold once its aliases are spelled out; a few lines of aliases of aliases make billions."""
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class RepeatedKeyError(yaml.YAMLError):  # type: ignore[misc]  # yaml ships no types
    """A key is given twice."""


def load_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    """What a YAML text says, as plain Python values.

    Raises:
        yaml.YAMLError: If it is no YAML, repeats a key, has keys that are no text, or is too deep or too large.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {})
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply, expected a few levels such as model: {dropkey: {ratio: 0.3}}") from error
    finally:
        loader.dispose()


def is_text(word: str) -> bool:
    """Whether YAML and file systems can hold a word: no null character, no half of a letter (a lone surrogate)."""
    return "\0" not in word and not any("\ud800" <= letter <= "\udfff" for letter in word)


def _check(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """The number of values under a node, aliases spelled out.

    Args:
        node: What to look at.
        sizes: Those already looked at; 0 while one is under way, so that a loop is found.
    """
    if node in sizes:
        if sizes[node] == 0:
            raise yaml.YAMLError(f"line {_line(node)}: an alias (*) stands inside what it repeats; write the values out")
        return sizes[node]
    sizes[node] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    elif not is_text(node.value):
        raise yaml.YAMLError(f"line {_line(node)}: {node.value!r} is no text; take the null character or half letter out")
    size = 1 + sum(_check(child, sizes) for child in children)
    if size > MAX_NODES:
        raise yaml.YAMLError(f"line {_line(node)}: aliases (*) repeat more than {MAX_NODES} values; write fewer out")
    sizes[node] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag not in (_TEXT, _MERGE) or not str(key.value).strip():
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise yaml.YAMLError(f"line {_line(key)}: the key {shown!r} is no option's name; expected text; correct it")
        if key.value in lines:
            raise RepeatedKeyError(
                f"the key {key.value!r} is given twice, in {_lines(lines[key.value], _line(key))}; "
                "expected once, since the second would silently win; keep one"
            )
        lines[key.value] = _line(key)


def _lines(first: int, second: int) -> str:
    return f"line {first}" if first == second else f"lines {first} and {second}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
