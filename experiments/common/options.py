"""Configurations as nested frozen dataclasses: small groups in the code and in --help, short names on the command line.

The option of a value has the name of its field, whatever its group, so these names are unique in a configuration. A
field called `name` or `path` has the option of its group: `config.objective.name` is --objective.
"""

import argparse
import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

import tyro

from mcl_jax.json_io import to_json

# Metadata of fields.
COUNT = {"least": 1}  # must be at least 1
VOLATILE = {"volatile": True}  # may change when a run resumes
NO_INFLUENCE = {"no_influence": True}  # does not change the numbers of a method, so `compare` ignores it

NAMED_BY_GROUP = ("name", "path")
PRESET_HELP = "Preset of values for the other options. An option on the command line overrides its preset value."
C = TypeVar("C")


class Options:
    """Base class of configurations and of their groups.

    A group is not checked when it is made. The configuration checks its groups, so that an error is one line.
    """

    def check(self) -> None:
        """Raises a ValueError for a wrong value, here or in a group; names its option."""
        for field in dataclasses.fields(self):
            least, value = field.metadata.get("least"), getattr(self, field.name)
            if isinstance(value, Options):
                value.check()
            elif least is not None and value is not None and value < least:
                raise ValueError(f"--{field.name.replace('_', '-')} must be at least {least}, got {value}")

    @classmethod
    def from_options(cls, **values: Any) -> Self:
        """Returns a configuration with these values, by the names of their options, and defaults for the others."""
        return cls(**_changes(cls, values))

    def replace(self, **values: Any) -> Self:
        """Returns a copy with other values, by the names of their options."""
        return dataclasses.replace(self, **_changes(self, values))

    @property
    def volatile(self) -> tuple[str, ...]:
        """Dotted names of the fields that may change when a run resumes."""
        return tuple(".".join(path) for path, field in leaves(self) if field.metadata.get("volatile"))


def leaves(config: Any) -> Iterator[tuple[tuple[str, ...], dataclasses.Field]]:
    """Yields (path, field) for every value of a configuration or of its class."""
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.default):
            yield from (((field.name, *path), leaf) for path, leaf in leaves(field.default))
        else:
            yield (field.name,), field


def options_with(mark: Mapping[str, Any], *configs: type) -> set[str]:
    """Returns the options whose fields have this metadata in any of the classes."""
    return {
        option_of(path)
        for config in configs
        for path, field in leaves(config)
        if mark.items() <= field.metadata.items()
    }


def option_of(path: Sequence[str]) -> str:
    """Returns the option, with underscores, of the value at a path."""
    return path[-2] if len(path) > 1 and path[-1] in NAMED_BY_GROUP else path[-1]


def flat(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the values by option, from the nested JSON of a configuration."""
    values = {}
    for name, value in config.items():
        here = (*path, name)
        values |= flat(value, here) if isinstance(value, Mapping) and value else {option_of(here): value}
    return values


def _changes(config: Any, values: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the fields that change and their new values; a group with a change is replaced."""
    if not path and (unknown := values.keys() - {option_of(leaf) for leaf, _ in leaves(config)}):
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    changes = {}
    for field in dataclasses.fields(config):
        here = (*path, field.name)
        if dataclasses.is_dataclass(field.default):
            group = getattr(config, field.name)
            if inner := _changes(group, values, here):
                changes[field.name] = dataclasses.replace(group, **inner)
        elif option_of(here) in values:
            changes[field.name] = values[option_of(here)]
    return changes


@dataclasses.dataclass(frozen=True)
class Presets:
    """The values of --preset.

    Attributes:
      of: values by option, by the name of the preset; other options on the command line override them.
      needed: options that a preset requires, with a description of each for the error.
      default: the preset if the command line has none.
    """

    of: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    needed: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    default: str | None = None


def parse(
    config: type[C], args: Sequence[str] | None = None, presets: Presets = Presets(), *, prog: str | None = None
) -> C:
    """Parses a command line. With --print-config, the configuration is printed as JSON, and the program ends.

    Presets are values of --preset, so that they may stand anywhere among the options. In
    `tyro.extras.overridable_config_cli` they are subcommands.

    Args:
      config: class of the configuration.
      args: the command line without the program; `sys.argv` if None.
      presets: the presets.
      prog: name of the program in --help; `python -m experiments.NAME` if None.
    Returns:
      The configuration.
    Raises:
      ValueError: if options contradict each other, or one that the preset needs is missing.
      SystemExit: for an unknown option or preset, and after --help and --print-config.
    """
    return _parse(config, args, presets, (), inspect.getdoc(config), prog).config


def parse_both(
    config: type[C], options: Any, args: Sequence[str] | None, presets: Presets, description: str | None
) -> tuple[C, Any]:
    """Parses a configuration with other options beside it, as `parse` does.

    Args:
      config: class of the configuration.
      options: default values of the other options.
      args: the command line without the program; `sys.argv` if None.
      presets: the presets of the configuration.
      description: first lines of --help.
    """
    given = [("options", Annotated[type(options), tyro.conf.arg(name="")], options)]
    line = _parse(config, args, presets, given, description)
    return line.config, line.options


def _parse(
    config: type,
    args: Sequence[str] | None,
    presets: Presets,
    fields: Sequence[tuple],
    description: str | None,
    prog: str | None = None,
) -> Any:
    """Returns the parsed line, which has a `config` with the values of its preset; see `parse`."""
    preset = _preset_of(args, presets.default)
    values = presets.of.get(preset)
    start = None if values is None else config.from_options(workdir=tyro.MISSING, **values)
    if presets.of:
        names = Annotated[Literal[tuple(presets.of)] | None, tyro.conf.arg(help=PRESET_HELP)]
        fields = [*fields, ("preset", names, presets.default)]
    line, printed = parse_line(config, args, start, fields, description, prog)
    if printed:
        print_and_exit(line.config)
    for name, needed in presets.needed.get(preset, {}).items():
        if flat(to_json(line.config, "config"))[name] is None:
            raise ValueError(f"--preset {preset} needs --{name}: {needed}")
    return line


def parse_line(
    config: type,
    args: Sequence[str] | None,
    default: Any = None,
    fields: Sequence[tuple] = (),
    description: str | None = None,
    prog: str | None = None,
) -> tuple[Any, bool]:
    """Parses a command line that has other options besides a configuration.

    Args:
      config: class of the configuration.
      args: the command line without the program; `sys.argv` if None.
      default: a configuration whose values are the defaults; None for those of the class.
      fields: other options, as `dataclasses.make_dataclass` takes them.
      description: first lines of --help.
      prog: name of the program in --help.
    Returns:
      An object with `config` and the other options, and whether --print-config was given.
    """
    flag = Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="Print the resolved configuration as JSON and exit.")
    ]
    given = Annotated[config, tyro.conf.arg(name="")]
    line = dataclasses.make_dataclass(
        "CommandLine", [("config", given), *fields, ("print_config", flag, False)], frozen=True
    )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--print-config", action="store_true")
    printed, rest = parser.parse_known_args(args)
    if printed.print_config:
        args = [*_empty(config), *rest, "--print-config"]
    markers = (tyro.conf.OmitArgPrefixes,)
    start = {} if default is None else {"default": line(default)}
    parsed = tyro.cli(line, prog=prog or _program(), args=args, description=description, config=markers, **start)
    return parsed, parsed.print_config


def parse_sized(quick: Any, args: Sequence[str], prog: str) -> Any:
    """Parses the command line of a benchmark; with --quick the defaults are those of the configuration `quick`."""
    config = type(quick)
    default = quick if "--quick" in args else config()
    found, printed = parse_line(config, args, default, description=inspect.getdoc(config), prog=prog)
    if printed:
        print_and_exit(found.config)
    return found.config


def _program() -> str | None:
    """Returns the command of an experiment that was started with `python -m`, for --help."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


def _empty(config: type) -> list[str]:
    """Returns empty values of the required options, which --print-config does not need; later ones override them."""
    required = [f for f in dataclasses.fields(config) if f.default is f.default_factory is dataclasses.MISSING]
    return [word for f in required for word in (f"--{f.name}", *([""] if f.type is Path else []))]


def print_and_exit(config: Any) -> NoReturn:
    """Prints a configuration as JSON and ends the program. Empty paths, which were not given, are null."""
    values = to_json(config, "config")
    values |= {f.name: None for f in dataclasses.fields(config) if getattr(config, f.name) == Path("")}
    print(json.dumps(values, indent=2, ensure_ascii=False))
    raise SystemExit(0)


def _preset_of(args: Sequence[str] | None, default: str | None) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default=default)
    return parser.parse_known_args(args)[0].preset
