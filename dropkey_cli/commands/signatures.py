"""Constructor signatures and docstrings read from source files, because to import them is to import torch: seconds."""

import ast
import inspect
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def outline(class_path: str) -> type:
    """A class without parents and behaviour that has another's name, docstring and constructor signature.

    Only what the signature names is imported.

    Args:
        class_path: Module and name of a class that defines its own ``__init__``.
    """
    file, module, original = _parse(class_path)
    constructor = _method(original, "__init__")
    constructor.body = [ast.Pass()]
    docstring = original.body[:1] if ast.get_docstring(original) is not None else []
    original.body, original.bases, original.decorator_list = [*docstring, constructor], [], []
    code = ast.fix_missing_locations(ast.Module([*_imports_of(constructor, module), original], type_ignores=[]))
    namespace: dict[str, Any] = {"__name__": __name__}  # not the module's own, which jsonargparse would import
    exec(compile(code, file, "exec"), namespace)
    outlined: type = namespace[original.name]
    return outlined


def parameter_names(class_path: str, method: str) -> list[str]:
    """The parameters of a method but for self; nothing is imported."""
    arguments = _method(_parse(class_path)[2], method).args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)][1:]


def constructor_options(cls: type) -> set[str]:
    """Constructor arguments of a class, with one level of nested dataclasses."""
    parameters = inspect.signature(cls).parameters
    hints = get_type_hints(vars(cls).get("__init__", cls))
    nested = {
        f"{name}.{field.name}"
        for name in parameters
        for kind in (hints.get(name), *get_args(hints.get(name)))
        if isinstance(kind, type) and is_dataclass(kind)
        for field in fields(kind)
    }
    return set(parameters) | nested


def wrong_values(cls: type, options: dict[str, Any]) -> list[str]:
    """The options whose values no constructor call could have had; those that the class does not take are left out.

    Nothing is imported, whatever the values name.

    Args:
        cls: A class, or its outline.
        options: Constructor arguments as plain data.
    """
    hints = get_type_hints(vars(cls).get("__init__", cls))
    return [name for name, value in options.items() if name in hints and not _fits(value, hints[name])]


def _fits(value: Any, hint: Any) -> bool:  # noqa: ANN401 - any value, any type
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if kind in (Any, dict):
        return kind is Any or isinstance(value, dict)
    if kind in (list, tuple):
        length = len(inner) if kind is tuple and ... not in inner else None
        each = inner if length else inner[:1] * len(value) if isinstance(value, list) else ()
        return isinstance(value, list) and len(value) == len(each) and all(map(_fits, value, each))
    if is_dataclass(kind):
        known = get_type_hints(kind)
        return isinstance(value, dict) and all(name in known and _fits(part, known[name]) for name, part in value.items())
    if kind in (None, NoneType, bool, str) or isinstance(value, bool):
        return type(value) is (NoneType if kind is None else kind)
    if isinstance(kind, type) and issubclass(kind, int | float):
        return isinstance(value, int) or (isinstance(value, float) and issubclass(kind, float))
    return isinstance(kind, type) and issubclass(kind, os.PathLike) and isinstance(value, str)


def _parse(class_path: str) -> tuple[Path, ast.Module, ast.ClassDef]:
    """The source file of a class, parsed, and the class in it; neither the file nor packages around it are imported.

    Where a class has no constructor of its own, they are those of its first base.
    """
    package, *inner, name = class_path.split(".")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, f"{package} is no package"
    file = Path(spec.submodule_search_locations[0], *inner).with_suffix(".py")
    module = ast.parse(file.read_text(encoding="utf-8"))
    found = next((node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    assert found is not None, f"{file} defines no class {name}"
    inherits = not any(isinstance(node, ast.FunctionDef) and node.name == "__init__" for node in found.body)
    imported = (node for node in module.body if isinstance(node, ast.ImportFrom))
    names = {alias.name: f"{node.module}.{alias.name}" for node in imported for alias in node.names}
    bases = [names[ast.unparse(base)] for base in found.bases[:1] if ast.unparse(base) in names]
    return _parse(bases[0]) if inherits and bases else (file, module, found)


def _method(cls: ast.ClassDef, name: str) -> ast.FunctionDef:
    found = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    assert found is not None, f"class {cls.name} defines no {name} of its own"
    return found


def _imports_of(constructor: ast.FunctionDef, module: ast.Module) -> Iterator[ast.stmt]:
    """The import statements of a module that a signature needs."""
    needed = {node.id for node in ast.walk(constructor.args) if isinstance(node, ast.Name)}
    for node in module.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in needed]
            if node.names:
                yield node
