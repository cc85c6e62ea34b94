"""YAML plus ``key=value`` overrides -> a frozen, typed config; every problem in one message.

One YAML file describes one whole run and inherits from nothing. ``a.b=c`` overrides are parsed as YAML, so
``loss.mlm=0.5``, ``resume=false`` and ``sources=[{path: a.jsonl}]`` all mean what they look like.
Environment variables in strings (``${BITBERT_DATA}``) are expanded, ``${NAME:-default}`` with a default.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bitbert.errors import UserError, did_you_mean
from bitbert.files import write_text_atomically

Precision = Literal["fp32", "bf16"]
"""Number format of matrix products with floats."""
Pairs = Literal["cross_encoder", "bi_encoder"]
"""Two texts in one sequence, or each in one of its own."""


class FrozenConfig(BaseModel):
    """Base of every config: unknown keys and infinite numbers are refused, and it never changes once it is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=FrozenConfig)

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice; YAML forbids it, and PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(config_class: type[ConfigT], path: str | Path, overrides: list[str] | None = None) -> ConfigT:
    """Read ``path``, apply ``a.b=c`` overrides, and check the whole.

    Raises:
        UserError: the file is missing or not a mapping, an override has no ``=``, or values do not fit;
            all wrong keys and values are named in the one message.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"config file {str(path)!r} does not exist; give the path of a YAML file, e.g. one under configs/"
        )
    return check_config(config_class, parse_overrides(overrides or [], read_mapping(path)), origin=str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked.

    Raises:
        UserError: it is not valid YAML, or not a mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"config file {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise UserError(f"config file {str(path)!r} holds {found}, wanted a mapping of keys to values")
    return data


def parse_overrides(overrides: list[str], data: dict[str, Any] | None = None) -> dict[str, Any]:
    """Apply ``a.b=c`` overrides to ``data`` (default: nothing) and return it.

    Raises:
        UserError: an override has no ``=``, is not YAML, or names a key below a plain value.
    """
    data = {} if data is None else data
    for override in overrides:
        _apply_override(data, override)
    return data


def check_config(config_class: type[ConfigT], data: dict[str, Any], origin: str) -> ConfigT:
    """Build ``config_class`` from plain data; ``origin`` names the data in the error message."""
    try:
        return config_class.model_validate(_expand(data, origin))
    except RecursionError as error:
        raise UserError(f"{origin}: a value contains itself, or is nested too deeply; write it out") from error
    except ValidationError as error:
        problems = _describe_all(error.errors(), config_class)
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        raise UserError(f"{origin}: {count}{' | '.join(problems)}") from error


def dump_config(config: FrozenConfig, path: str | Path) -> None:
    """Write the resolved config as YAML, so that the file alone repeats the run."""
    write_text_atomically(Path(path), config_yaml(config))


def config_yaml(config: FrozenConfig) -> str:
    """The resolved config as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r} has no '='; write it as key=value, e.g. optimizer.learning_rate=1e-3")
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from error
    *parents, leaf = key.split(".")
    node = data
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"override {override!r}: {parent!r} holds {child!r}, which has no keys below it")
        node = child
    node[leaf] = value


def _expand(value: Any, origin: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(child, origin) for key, child in value.items()}
    if isinstance(value, list):
        return [_expand(child, origin) for child in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name, default)
        if found is None:
            raise UserError(
                f"{origin}: {value!r} needs the environment variable {name}, which is not set; export {name}=..."
            )
        return found

    return _VARIABLE.sub(replace, value)


def _describe_all(problems: list[Any], config_class: type[BaseModel]) -> list[str]:
    """A sentence a problem; unknown keys of one section that are like no other share theirs."""
    described = []
    strangers: dict[tuple[Any, ...], list[str]] = {}
    for problem in problems:
        section, key = problem["loc"][:-1], str(problem["loc"][-1]) if problem["loc"] else ""
        if problem["type"] != "extra_forbidden":
            described.append(_describe(problem))
        elif hint := did_you_mean(key, _fields_at(config_class, section)):
            described.append(f"{_dotted(problem['loc'])}: unknown key{hint}")
        else:
            strangers.setdefault(section, []).append(_dotted(problem["loc"]))
    for section, keys in strangers.items():
        known = ", ".join(_fields_at(config_class, section))
        described.append(f"{', '.join(keys)}: unknown key{'s' if len(keys) > 1 else ''}; known keys: {known}")
    return described


def _dotted(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location) or "config"


def _describe(problem: Any) -> str:
    location = _dotted(problem["loc"])
    if problem["type"] == "missing":
        return f"{location}: missing; this key has no default, set it in the file or as {location}=..."
    message = problem["msg"].removeprefix("Value error, ")
    got = problem["input"]
    shown = "" if isinstance(got, dict) else f"got {got!r}: "
    return f"{location}: {shown}{message}"


def _fields_at(config_class: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Field names of the nested config that ``location`` points into."""
    current: type[BaseModel] = config_class
    for part in location:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            nested = _nested_config(field.annotation)
            if nested is not None:
                current = nested
    return sorted(current.model_fields)


def _nested_config(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        nested = _nested_config(argument)
        if nested is not None:
            return nested
    return None
