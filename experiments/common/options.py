"""Configurations as nested frozen dataclasses: small groups in the code and in --help, short names on the command line.

The option of a value has the name of its field, whatever group it is in, so these names are unique in a configuration.
A field called `name` or `path` is the option of its group: `config.objective.name` is --objective.
"""

import argparse
import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

import tyro

from mcl_jax.json_io import to_json

# Metadata of fields.
COUNT = {"least": 1}  # refused below 1
VOLATILE = {"volatile": True}  # may differ when a run is resumed
NO_INFLUENCE = {
    "no_influence": True
}  # no number of a method depends on it, so `compare` does not tell runs apart by it

NAMED_BY_GROUP = ("name", "path")
C = TypeVar("C")


class Options:
    """Base class of configurations and of their groups.

    Groups do not check themselves when they are made: the configuration checks them, and its errors are one line.
    """

    def check(self) -> None:
        """Raises ValueError for a value that cannot be, in the groups too; names its option."""
        for field in dataclasses.fields(self):
            least, value = field.metadata.get("least"), getattr(self, field.name)
            if isinstance(value, Options):
                value.check()
            elif least is not None and value is not None and value < least:
                raise ValueError(f"--{field.name.replace('_', '-')} must be at least {least}, got {value}")

    @classmethod
    def of(cls, **values: Any) -> Self:
        """A configuration with these values, by the names of their options; the others have their defaults."""
        return cls(**_changes(cls, values))

    def replace(self, **values: Any) -> Self:
        """The same configuration with other values, by the names of their options."""
        return dataclasses.replace(self, **_changes(self, values))

    @property
    def volatile(self) -> tuple[str, ...]:
        """Dotted names of the fields that may differ when a run is resumed."""
        return tuple(".".join(path) for path, field in leaves(self) if field.metadata.get("volatile"))


def leaves(config: Any) -> Iterator[tuple[tuple[str, ...], dataclasses.Field]]:
    """(path, field) of every value of a configuration or of its class."""
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(field.default):
            yield from (((field.name, *path), leaf) for path, leaf in leaves(field.default))
        else:
            yield (field.name,), field


def options_with(mark: Mapping[str, Any], *configs: type) -> set[str]:
    """Options whose fields have this metadata in any of the classes."""
    return {
        option_of(path)
        for config in configs
        for path, field in leaves(config)
        if mark.items() <= field.metadata.items()
    }


def option_of(path: Sequence[str]) -> str:
    """The option, with underscores, of the value at a path."""
    return path[-2] if len(path) > 1 and path[-1] in NAMED_BY_GROUP else path[-1]


def flat(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Values by option, of the nested JSON of a configuration."""
    found = {}
    for name, value in config.items():
        here = (*path, name)
        found |= flat(value, here) if isinstance(value, Mapping) and value else {option_of(here): value}
    return found


def _changes(config: Any, values: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Fields that change, with their values; groups with a change are made anew."""
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


def parse(
    config: type[C],
    args: Sequence[str] | None = None,
    *,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    needed: Mapping[str, Mapping[str, str]] | None = None,
    default: str | None = None,
    prog: str | None = None,
) -> C:
    """The configuration that a command line asks for. With --print-config it is printed as JSON, and nothing is run.

    Presets are values of --preset, and not subcommands as in `tyro.extras.overridable_config_cli`, so that they may
    stand anywhere among the options.

    Args:
      config: class of the configuration.
      args: the command line without the program; `sys.argv` if None.
      presets: values by option, by the name of the preset; other options on the command line override them.
      needed: options that a preset cannot do without, and what each must be, for the message.
      default: the preset of a command line that has none.
      prog: how --help calls the program.
    Raises:
      ValueError: for options that do not fit together, or one that the preset needs.
      SystemExit: for an unknown option or preset, and after --help and --print-config.
    """
    preset = _preset_of(args, default)
    values = (presets or {}).get(preset)
    start = None if values is None else config.of(workdir=tyro.MISSING, **values)
    fields = []
    if presets:
        names = Annotated[Literal[tuple(presets)] | None, tyro.conf.arg(help="A recipe that other options override.")]
        fields = [("preset", names, default)]
    found, printed = parse_line(config, args, start, fields, inspect.getdoc(config), prog)
    if printed:
        print_and_exit(found.config)
    for name, what in (needed or {}).get(preset, {}).items():
        if flat(to_json(found.config, "config"))[name] is None:
            raise ValueError(f"--preset {preset} needs --{name}: {what}")
    return found.config


def parse_line(
    config: type,
    args: Sequence[str] | None,
    default: Any = None,
    fields: Sequence[tuple] = (),
    description: str | None = None,
    prog: str | None = None,
) -> tuple[Any, bool]:
    """(what was parsed, with its `config` and `fields`; whether it is only to be printed).

    Args:
      default: a configuration whose values are the defaults; None for those of the class.
      fields: further options, as `dataclasses.make_dataclass` takes them.
    """
    flag = Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="Print the resolved configuration as JSON, and exit.")
    ]
    given = Annotated[config, tyro.conf.arg(name="")]
    line = dataclasses.make_dataclass(
        "CommandLine", [("config", given), *fields, ("print_config", flag, False)], frozen=True
    )
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--print-config", action="store_true")
    printed, rest = parser.parse_known_args(args)
    if printed.print_config and "workdir" in {field.name for field in dataclasses.fields(config)}:
        args = ["--workdir", "", *rest, "--print-config"]  # to print one needs none
    markers = (tyro.conf.OmitArgPrefixes,)
    start = {} if default is None else {"default": line(default)}
    found = tyro.cli(line, prog=prog, args=args, description=description, config=markers, **start)
    return found, found.print_config


def print_and_exit(config: Any) -> NoReturn:
    """Prints a configuration as JSON, and ends the program."""
    values = to_json(config, "config")
    if "workdir" in values and config.workdir == Path(""):
        values["workdir"] = None
    print(json.dumps(values, indent=2, ensure_ascii=False))
    raise SystemExit(0)


def _preset_of(args: Sequence[str] | None, default: str | None) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?", default=default)
    return parser.parse_known_args(args)[0].preset
