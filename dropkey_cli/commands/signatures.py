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

from jsonargparse._parameter_resolvers import get_signature_parameters


def outline(class_path: str) -> type:
    """A class without parents and behaviour that has another's name, docstring and constructor signature.

    Where the constructor hands its ``**options`` on to its parent or to another class, the options of that one are in the
    place of them. Only what the signature names is imported.

    Args:
        class_path: Module and name of a class that defines its own ``__init__``, or of a dataclass.
    """
    file, module, original = parse_class(class_path)
    constructor, docstring = constructor_in(original), ast.get_docstring(original, clean=False)
    imports = list(_imports_of(constructor, module))
    name, arguments, receiver = original.name, constructor.args, receiver_of(constructor, module, original)
    while receiver is not None:
        _, module, original = parse_class(receiver)
        constructor = constructor_in(original)
        imports += _imports_of(constructor, module)
        arguments = _joined(arguments, constructor.args)
        docstring = _joined_docstring(docstring or "", ast.get_docstring(original) or "")
        receiver = receiver_of(constructor, module, original)
    constructor.args, constructor.body, constructor.decorator_list = arguments, [ast.Pass()], []
    original.name, original.bases, original.decorator_list = name, [], []
    original.body = [*([] if docstring is None else [ast.Expr(ast.Constant(docstring))]), constructor]
    code = ast.fix_missing_locations(ast.Module([*imports, original], type_ignores=[]))
    namespace: dict[str, Any] = {"__name__": __name__}  # not the module's own, which jsonargparse would import
    exec(compile(code, file, "exec"), namespace)
    outlined: type = namespace[name]
    return outlined


def parameter_names(class_path: str, method: str) -> list[str]:
    """The parameters of a method but for self; nothing is imported."""
    arguments = _method(parse_class(class_path)[2], method).args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)][1:]


def constructor_options(cls: type) -> set[str]:
    """Constructor arguments of a class, with one level of nested dataclasses."""
    hints = constructor_hints(cls)
    nested = {
        f"{name}.{field.name}"
        for name, hint in hints.items()
        for kind in (hint, *get_args(hint))
        if isinstance(kind, type) and is_dataclass(kind)
        for field in fields(kind)
    }
    return set(hints) | nested


def constructor_hints(cls: type) -> dict[str, Any]:
    """The type of each constructor argument of a class, with those that its ``**options`` stand for; Any for no type."""
    hints = {parameter.name: parameter.annotation for parameter in get_signature_parameters(cls, None)}
    return {name: Any if hint is inspect.Parameter.empty else hint for name, hint in hints.items()}


def wrong_values(cls: type, options: dict[str, Any]) -> list[str]:
    """The options whose values no constructor call could have had; those that the class does not take are left out.

    Nothing is imported, whatever the values name.

    Args:
        cls: A class, or its outline.
        options: Constructor arguments as plain data.
    """
    hints = constructor_hints(cls)
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


def parse_class(class_path: str) -> tuple[Path, ast.Module, ast.ClassDef]:
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
    return parse_class(bases[0]) if inherits and bases else (file, module, found)


def constructor_in(cls: ast.ClassDef) -> ast.FunctionDef:
    """The ``__init__`` of a class, or the one that a dataclass would get."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in cls.decorator_list):
        return _method(cls, "__init__")
    constructor = ast.parse("def __init__(self): ...").body[0]
    assert isinstance(constructor, ast.FunctionDef)
    fields_of_it = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
    constructor.args.kwonlyargs = [ast.arg(ast.unparse(node.target), node.annotation) for node in fields_of_it]
    constructor.args.kw_defaults = [node.value for node in fields_of_it]
    return constructor


def receiver_of(constructor: ast.FunctionDef, module: ast.Module, cls: ast.ClassDef) -> str | None:
    """The class that a constructor hands its ``**options`` on to, by module and name; None if it has none."""
    if constructor.args.kwarg is None:
        return None
    options = constructor.args.kwarg.arg
    calls = [node for node in ast.walk(constructor) if isinstance(node, ast.Call)]
    takes_them = (call for call in calls if any(word.arg is None and _is_name(word.value, options) for word in call.keywords))
    called = next((ast.unparse(call.func) for call in takes_them), None)
    if called is None:
        return None
    name = ast.unparse(cls.bases[0]) if called == "super().__init__" else called
    imported = (node for node in module.body if isinstance(node, ast.ImportFrom))
    paths = [f"{node.module}.{alias.name}" for node in imported for alias in node.names if name == alias.name]
    assert paths, f"{cls.name} hands its options to {name}, which its module does not import"
    return paths[0]


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _joined(own: ast.arguments, handed_on: ast.arguments) -> ast.arguments:
    """A signature with the keywords of another one in the place of its ``**options``."""
    named = {argument.arg for argument in (*own.posonlyargs, *own.args, *own.kwonlyargs)}
    further = zip(handed_on.kwonlyargs, handed_on.kw_defaults, strict=True)
    added = [(argument, default) for argument, default in further if argument.arg not in named]
    own.kwonlyargs += [argument for argument, _ in added]
    own.kw_defaults += [default for _, default in added]
    own.kwarg = handed_on.kwarg
    return own


def _joined_docstring(own: str, handed_on: str) -> str:
    """A docstring with the arguments that another one explains; where both explain one, its own is the last."""
    head, _, explained = inspect.cleandoc(own).partition("\nArgs:\n")
    further = handed_on.partition("\nArgs:\n")[2].partition("\n\n")[0]
    return f"{head}\nArgs:\n{further}\n{explained}"


def _method(cls: ast.ClassDef, name: str) -> ast.FunctionDef:
    found = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    assert found is not None, f"class {cls.name} defines no {name} of its own"
    return found


def _imports_of(constructor: ast.FunctionDef, module: ast.Module) -> Iterator[ast.stmt]:
    """The import statements of a module that a signature needs."""
    needed = {node.id for node in ast.walk(constructor.args) if isinstance(node, ast.Name)}
    for node in module.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            used = [alias for alias in node.names if (alias.asname or alias.name) in needed]
            if used:
                yield ast.ImportFrom(node.module, used, node.level) if isinstance(node, ast.ImportFrom) else ast.Import(used)
