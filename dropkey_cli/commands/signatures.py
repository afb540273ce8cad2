"""Constructor signatures and docstrings read from source files, because to import them is to import torch: seconds."""

import ast
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring


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


@dataclass(frozen=True)
class Parameter:
    """One constructor argument, as its source says.

    Args:
        name: Dotted where it is a field of a dataclass that is an argument, e.g. dropkey.ratio.
        type: Its annotation, aliases of the module written out.
        default: As source text; None where there is none.
        help: What the docstring says of it, on one line.
    """

    name: str
    type: str
    default: str | None
    help: str


def described_parameters(class_path: str) -> list[Parameter]:
    """The constructor arguments of a class, or the fields of a dataclass, with what the docstrings say; nothing is imported."""
    _, module, cls = _parse(class_path)
    constructor = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    docstrings = [ast.get_docstring(cls) or "", (constructor and ast.get_docstring(constructor)) or ""]
    texts = {entry.arg_name: entry.description or "" for text in docstrings for entry in parse_docstring(text).params}
    found: list[Parameter] = []
    for name, annotation, default in _fields(cls) if constructor is None else _arguments(constructor):
        kind = _spelled_out(annotation, module)
        found.append(Parameter(name, ast.unparse(kind), _default(default), " ".join(texts.get(name, "").split())))
        for path in _dataclasses_in(annotation, module):
            found += [replace(field, name=f"{name}.{field.name}") for field in described_parameters(path)]
    return found


def _arguments(constructor: ast.FunctionDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    """Name, annotation and default of each argument but self."""
    arguments = constructor.args
    plain = [*arguments.posonlyargs, *arguments.args][1:]
    defaults = [*[None] * (len(plain) - len(arguments.defaults)), *arguments.defaults]
    for argument, default in zip(plain, defaults, strict=True):
        yield argument.arg, argument.annotation, default
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield argument.arg, argument.annotation, value


def _fields(cls: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation, node.value


def _default(value: ast.expr | None) -> str | None:
    """A default as text, ``field(default_factory=list)`` as what it makes."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
        factory = next((ast.unparse(word.value) for word in value.keywords if word.arg == "default_factory"), "")
        return {"list": "[]", "dict": "{}"}.get(factory)
    return None if value is None else ast.unparse(value)


class _Aliases(ast.NodeTransformer):
    """Writes a module's own names for types out."""

    def __init__(self, module: ast.Module) -> None:
        assigned = [node for node in module.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
        self.meanings = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.meanings.get(node.id, node)


def _spelled_out(annotation: ast.expr | None, module: ast.Module) -> ast.expr:
    copied = ast.parse(ast.unparse(annotation), mode="eval").body if annotation is not None else ast.Name("Any")
    spelled: ast.expr = _Aliases(module).visit(copied)
    return spelled


def _dataclasses_in(annotation: ast.expr | None, module: ast.Module) -> Iterator[str]:
    """The class paths of this package's dataclasses that an annotation names."""
    named = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} if annotation is not None else set()
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dropkey_cli."):
            for alias in node.names:
                if alias.name in named and _is_dataclass(path := f"{node.module}.{alias.name}"):
                    yield path


def _is_dataclass(class_path: str) -> bool:
    try:
        decorators = _parse(class_path)[2].decorator_list
    except AssertionError:  # a name for a type, not a class
        return False
    return any("dataclass" in ast.unparse(decorator) for decorator in decorators)


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
    """The source file of a class, parsed, and the class in it; neither the file nor packages around it are imported."""
    package, *inner, name = class_path.split(".")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, f"{package} is no package"
    file = Path(spec.submodule_search_locations[0], *inner).with_suffix(".py")
    module = ast.parse(file.read_text(encoding="utf-8"))
    found = next((node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    assert found is not None, f"{file} defines no class {name}"
    return file, module, found


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
