"""Settings of an experiment: a dataclass for the options, the help and the record."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import tyro

import mtlopt
from experiments.lab.errors import UsageError, one_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortOptions:
    """Options of an experiment that is so short that it needs no resume.

    Attributes:
      out: folder for all files that the run writes.
    """

    out: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ShortOptions):
    """Options of all other experiments; they do not change the results of a run.

    Attributes:
      resume: continue the run in `out`, which must have the same settings.
      tensorboard: also write the metrics as event files, to `out`/tensorboard.
      full: use the paper's settings; other options override single settings.
    """

    resume: bool = False
    tensorboard: bool = False
    full: bool = False


SettingsType = TypeVar("SettingsType", bound=ShortOptions)
Loaded = TypeVar("Loaded")


def parse(
    name: str,
    description: str | None,
    quick: SettingsType,
    argv: Sequence[str],
    *,
    full: Mapping[str, Any] | None = None,
    names: Mapping[str, Collection[str]] | None = None,
) -> SettingsType:
    """Returns the settings: `quick`, changed by `--full` and the options.

    A wrong option is a UsageError. For fields that are tuples of names, `names` has the
    valid names.
    """
    full, names = full or {}, names or {}
    if "--full" in argv and not full:
        raise UsageError(f"--full changes nothing in {name}. Leave it out.")
    known = {"all", *(name for valid in names.values() for name in valid)}
    profile = full if "--full" in argv else {}
    default = dataclasses.replace(quick, out=f"results/{name}", **profile)
    changes = [
        " ".join([f"\n  {option(name)}", *map(str, _each(value))])
        for name, value in full.items()
    ]
    # tyro breaks lines before brackets and digits, so each paragraph is passed as one
    # line.
    whole = re.sub(r"(?<=\S)\n(?=[^\s-])", " ", description or "")
    text = "".join([whole, "\n--full:" if full else "", *changes])
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            settings = tyro.cli(
                type(quick),
                default=default,
                args=[part for text in argv for part in _split(text, known)],
                prog=f"python -m experiments {name}",
                description=text,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit_:
        if exit_.code:
            raise UsageError(_message(errors.getvalue())) from None
        raise
    chosen = {
        field: choose_names(getattr(settings, field), valid, option(field))
        for field, valid in names.items()
    }
    _check_positive(settings, (vars(quick), full))
    return dataclasses.replace(settings, **chosen)


def deciding(settings: ShortOptions) -> dict[str, Any]:
    """Returns the settings that change results, by name."""
    common = {field.name for field in dataclasses.fields(Options)}
    fields = dataclasses.asdict(settings)
    return {name: fields[name] for name in fields if name not in common}


def option(field: str) -> str:
    """Returns the option of a field: `--batch-size` for `batch_size`."""
    return f"--{field.replace('_', '-')}"


def loaded(load: Callable[..., Loaded], *args: Any, **kwargs: Any) -> Loaded:
    """Returns the result of a loader; raises a `UsageError` if the data are wrong."""
    try:
        return load(*args, **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(error) from error


def check_batch_size(batch_size: int, found: int) -> None:
    """Raises a `UsageError` if no batch can be filled."""
    if batch_size > found:
        raise UsageError(
            f"--batch-size must be at most {found}, the number of training examples, "
            f"got {batch_size}."
        )


def choose_names(
    texts: Sequence[str], valid: Collection[str], option: str
) -> tuple[str, ...]:
    """Returns the chosen names without repetitions, in the given order.

    Examples:
      >>> choose_names(["b", "a", "b"], ["a", "b", "c"], "--names")
      ('b', 'a')
      >>> choose_names(["all"], ["a", "b", "c"], "--names")
      ('a', 'b', 'c')
    """
    for name in texts:
        if name != "all" and name not in valid:
            raise UsageError(
                f"{option} must name some of {', '.join(valid)}, or all; got {name!r}."
            )
    if not texts:
        raise UsageError(f"{option} must name at least one of {', '.join(valid)}.")
    return tuple(valid) if "all" in texts else tuple(dict.fromkeys(texts))


def methods_for(num_tasks: int) -> tuple[str, ...]:
    """Returns the names in `mtlopt.METHODS` that work with this many tasks."""
    methods = mtlopt.METHODS.items()
    return tuple(name for name, method in methods if method.min_tasks <= num_tasks)


def _split(text: str, known: set[str]) -> list[str]:
    """Splits names at commas: `mgda,pcgrad`."""
    parts = [part for part in text.split(",") if part]
    return parts if not known.isdisjoint(parts) else [text]


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _message(page: str) -> str:
    """Returns tyro's message about a mistake, without box, title and help."""
    boxed = page.startswith("╭")
    lines = [line.strip(" │") for line in page.splitlines() if line[:1] not in "╭╰"]
    parts = re.split(r"^[-─]{3,}$", "\n".join(lines), flags=re.MULTILINE)
    return one_line(parts[0 if boxed or len(parts) == 1 else 1])


def _check_positive(
    settings: ShortOptions, profiles: Sequence[Mapping[str, Any]]
) -> None:
    """Checks that values are positive and not empty, or as in a profile (0 for all)."""
    for name, value in vars(settings).items():
        if any(value == own.get(name) for own in profiles):
            continue
        if value == ():
            raise UsageError(f"{option(name)} must have at least one value.")
        for number in _each(value):
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if is_number and not 0 < number < float("inf"):
                raise UsageError(
                    f"{option(name)} must be a positive number, got {number}."
                )
