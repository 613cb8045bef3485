"""From a file to a config, or to one error that lists everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from etl_dagster.config.document import Document, FieldPath, Problem, read
from etl_dagster.config.model import PipelineConfig
from etl_dagster.config.problems import problems
from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class ConfigFileError(ConfigError):
    """A config file that cannot be used; ``problems`` has each reason apart."""

    def __init__(self, file: Path, found: Sequence[Problem]) -> None:
        count = "a problem" if len(found) == 1 else f"{len(found)} problems"
        super().__init__("\n".join([f"{file} has {count}:", *(f"  {_line(file, problem)}" for problem in found)]))
        self.file = file
        self.problems = tuple(found)


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> PipelineConfig:
    """Read the config of a pipeline from a YAML file.

    ``${NAME}`` and ``${NAME:-default}`` in any text stand for environment variables, ``$${`` for ``${`` itself.
    Relative paths start from the file's folder.

    Raises:
        ConfigError: Something is wrong; lists everything that is.
    """
    path = path.absolute()
    document = read(_text(path), os.environ if environ is None else environ, _is_value_policy)
    _require_fields(document)
    # Without the cause: what pydantic and YAML say of an error repeats values of the file.
    config = _validated(path, document)
    if document.problems or config is None:
        raise ConfigFileError(path, sorted(document.problems, key=lambda problem: problem.line or 0))
    return _anchored(config, path.parent)


def _is_value_policy(path: FieldPath) -> bool:
    """`values: null` names a policy; who leaves the field empty has not chosen one."""
    return len(path) > 1 and path[0] in ("defaults", "tables") and path[-1] == "values"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigFileError(path, [Problem((), "is not UTF-8 text", "save it as UTF-8")]) from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror or type(error).__name__}"
        raise ConfigFileError(path, [Problem((), reason, "etl-dagster check -c pipeline.yaml")]) from error


def _require_fields(document: Document) -> None:
    if not document.problems and not isinstance(document.data, dict):
        text = "is empty" if document.data is None else "is not a group of fields"
        document.problems.append(Problem((), text, "name: shop", document.line(())))


def _validated(path: Path, document: Document) -> PipelineConfig | None:
    if not isinstance(document.data, dict):
        return None
    try:
        return PipelineConfig.model_validate(document.data)
    except ValidationError as error:
        document.problems.extend(problems(error, PipelineConfig, document))
        return None


def _line(file: Path, problem: Problem) -> str:
    where = f"{file}:{problem.line}" if problem.line else str(file)
    field = ".".join(map(str, problem.path))
    example = f" (for example `{problem.example}`)" if problem.example else ""
    return f"{where}: {field} {problem.text}{example}" if field else f"{where}: {problem.text}{example}"


def _anchored(model: Model, folder: Path, *, in_destination: bool = False) -> Model:
    """The model with every relative path in it taken from ``folder``."""
    here = in_destination or isinstance(model, DestinationConfig)
    changed = {
        name: _anchored_value(getattr(model, name), folder, in_destination=here) for name in type(model).model_fields
    }
    if here and isinstance(path := getattr(model, "path", None), str):
        changed["path"] = _anchored_text(path, folder)
    return model.model_copy(update={name: value for name, value in changed.items() if value != getattr(model, name)})


def _anchored_text(path: str, folder: Path) -> str:
    # A destination's `path` may be something else than a file, and then it has a colon: `:memory:`, `s3://bucket/x`.
    return path if not path or ":" in path else str(folder / Path(path).expanduser())


def _anchored_value(value: Any, folder: Path, *, in_destination: bool) -> Any:
    match value:
        case Path():
            return folder / value.expanduser()
        case BaseModel():
            return _anchored(value, folder, in_destination=in_destination)
        case tuple():
            return tuple(_anchored_value(item, folder, in_destination=in_destination) for item in value)
        case _:
            return value
