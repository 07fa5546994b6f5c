"""Reads YAML so that a value is what was written: numbers at every depth, and no word that silently becomes a boolean.

PyYAML follows YAML 1.1, in which 1e-4 is text, `no` is false, 010 is eight and 1:30 is ninety. Here the rules are those
of YAML 1.2. Options themselves stay text, `dataset_config: 1.10` and `run_name: no` as well: the parser of the command
line, which knows the type of each, reads them. Only inside of an option, such as the fields of an encoder, a value gets
its type here.
"""

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

# A mapping of options, by its path from the root; `modalities` holds one of them for each modality.
OPTIONS = ((), ("training",), ("modalities",), ("modalities", None))

NULL = "tag:yaml.org,2002:null"
TYPES = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
AMBIGUOUS = re.compile("yes|no|on|off", re.IGNORECASE)


class _Loader(yaml.SafeLoader):
    """The safe loader with the types of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping; a key that is given twice is an error, of which PyYAML would take the last."""
        _check_keys_differ(node)
        return super().construct_mapping(node, deep=deep)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _word(loader: _Loader, node: yaml.ScalarNode) -> str:
    if node.style is None and AMBIGUOUS.fullmatch(node.value):
        raise ValueError(
            f"line {node.start_mark.line + 1}: {node.value} may be a word or mean true or false; write true or false, "
            f"or '{node.value}' in quotes for the word"
        )
    return node.value


for _kind, (_pattern, _first) in TYPES.items():
    _compiled = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", _compiled, [*_first, *([""] * (_kind == "null"))]
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:str", _word)


def read_yaml(text: str) -> Any:
    """The value of a YAML text: options are str, None or list of str, and what is inside of them has its type.

    Raises:
        yaml.YAMLError: the text is no YAML.
        ValueError: a key is given twice, or a word inside of an option may mean true or false. The message begins with
            the line.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(loader, node, ())
    finally:
        loader.dispose()


def _value(loader: _Loader, node: yaml.Node, path: tuple[str, ...]) -> Any:
    if not isinstance(node, yaml.MappingNode) or not _holds_options(path):
        return loader.construct_object(node, deep=True)
    _check_tag(loader, node)
    _check_keys_differ(node)
    loader.flatten_mapping(node)
    options = {}
    for key, value in node.value:
        _check_tag(loader, key)
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {key.start_mark.line + 1}: a key is no word; write the name of an option")
        options[key.value] = _option(loader, value, (*path, key.value))
    return options


def _option(loader: _Loader, node: yaml.Node, path: tuple[str, ...]) -> Any:
    _check_tag(loader, node)
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == NULL else node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        for item in node.value:
            _check_tag(loader, item)
        return [item.value for item in node.value]
    return _value(loader, node, path)


def _check_tag(loader: _Loader, node: yaml.Node) -> None:
    """Raise for a tag such as !!python/object, which the safe loader does not know."""
    if node.tag not in loader.yaml_constructors:
        loader.construct_object(node)


def _holds_options(path: tuple[str, ...]) -> bool:
    return any(
        len(path) == len(options)
        and all(part in (None, name) for part, name in zip(options, path, strict=True))
        for options in OPTIONS
    )


def _check_keys_differ(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<" and key.value in seen:
            raise ValueError(
                f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice; keep one of them"
            )
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
