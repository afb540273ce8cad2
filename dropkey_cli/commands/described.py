"""What source files say of constructor arguments, for --help and completion: name, type, default, text; nothing is imported."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace

from docstring_parser import parse as parse_docstring

from dropkey_cli.commands.signatures import parse_class, receiver_of


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
    """The constructor arguments of a class, or the fields of a dataclass, with what the docstrings say; nothing is imported.

    Those that the constructor's ``**options`` stand for come last.

    Args:
        class_path: Module and name of the class.
    """
    _, module, cls = parse_class(class_path)
    constructor = next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
    docstrings = [ast.get_docstring(cls) or "", (constructor and ast.get_docstring(constructor)) or ""]
    texts = {entry.arg_name: entry.description or "" for text in docstrings for entry in parse_docstring(text).params}
    found: list[Parameter] = []
    for name, annotation, default in _fields(cls) if constructor is None else _arguments(constructor):
        kind = _spelled_out(annotation, module)
        found.append(Parameter(name, ast.unparse(kind), _default(default), " ".join(texts.get(name, "").split())))
        for path in _dataclasses_in(annotation, module):
            found += [replace(field, name=f"{name}.{field.name}") for field in described_parameters(path)]
    receiver = None if constructor is None else receiver_of(constructor, module, cls)
    own = {parameter.name for parameter in found}
    return [*found, *(one for one in described_parameters(receiver) if one.name not in own)] if receiver else found


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
        decorators = parse_class(class_path)[2].decorator_list
    except AssertionError:  # a name for a type, not a class
        return False
    return any("dataclass" in ast.unparse(decorator) for decorator in decorators)
