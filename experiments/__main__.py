"""``python -m experiments PAPER.EXPERIMENT [options]``: runs one experiment."""

import errno
import importlib
import sys
from collections.abc import Sequence

import mtlopt
from experiments.lab.errors import UsageError, one_line

# By paper and name, which are the module's path in this folder: what the experiment
# shows, which tables or figures of the paper it makes, and the minutes of a run without
# options on two CPU cores (None if they were not measured). The module has a
# `main(argv)`, and is imported only if its experiment runs.
INDEX = {
    "aligned_mtl": {
        "multimnist": ("two overlaid digits, all methods", "Table 2, Fig. 3", 2),
        "toy": ("two losses of two parameters", "Fig. 1", 1),
        "cityscapes3": ("streets: classes, instances, disparity", "Table 3", None),
        "celeba": ("40 attributes by ResNet-18", "Tables 3, 5", None),
        "seven_scenes": ("the pose of a camera", "Tables 4, 6", None),
    },
    "ate_sg": {
        "synthetic": ("points by quadrant and circle", "Tables 2, 3", 7),
        "wireless": ("radio signals by modulation and type", "Tables 5, 6", 2),
        "mammography": ("calcifications, by SG, Adam and ATE", "Table 8", 9),
    },
    "mtl_io": {
        "task_groups": ("tasks in turn or in groups, IUS and IO", "Tables 3, 4", 7),
        "nyuv2": ("rooms: segmentation, depth, normals", "Table 1", 9),
        "cityscapes7": ("streets: seven categories as tasks", "Table 2", None),
        "celeba_groups": ("40 attributes, IUS and IO in groups", "Tables 3, 4", None),
    },
    "fast_line_search": {
        "multimnist": ("line search on two digits", "Fig. 3, 4, 6", 8),
        "cifar10": ("line search on ten one-vs-rest tasks", "Fig. 5", None),
        "bert": ("line search on sentence pairs", "Table 3", None),
    },
    "fronts": {
        "concave": ("32 networks on a front that weighted sums miss", "", 9),
    },
    "real_data": {
        "comparison": ("methods against tuned weights", "", None),
        "fine_tuning": ("adapters on a frozen base, four domains", "", 1),
    },
}
OTHERS = {
    "poisson": "an equation and its boundary: the README's first example",
    "doctor": "whether two tasks conflict, and what may help",
    "bench.sharded": "several devices: losses, memory, communication",
}
NAMES = (*(f"{paper}.{name}" for paper in INDEX for name in INDEX[paper]), *OTHERS)
# The one short name, for the README's command.
SHORT = {"multimnist": "aligned_mtl.multimnist"}
# Names from the time before each paper had a folder.
_PREFIXES = {"ate_sg": "ate_", "fast_line_search": "fbls_"}
MOVED = {
    f"{_PREFIXES.get(paper, '')}{name}": f"{paper}.{name}"
    for paper in INDEX
    for name in INDEX[paper]
    if f"{paper}.{name}" not in SHORT.values()
} | {"sharded": "bench.sharded"}

_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment that the first argument names.

    Args:
      argv: arguments; None means the arguments of the command line.

    Returns:
      The exit code: 2 for a mistake of the user, 130 if the run was interrupted.
    """
    name, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    try:
        importlib.import_module(f"experiments.{_known(name)}").main(options)
    except ModuleNotFoundError as error:
        return _fail(
            f"the package {error.name!r} is missing. Install what experiments use: "
            'pip install -e ".[experiments]".'
        )
    except UsageError as error:
        return _fail(one_line(error))
    except OSError as error:
        if error.errno not in _NO_WRITING:
            raise
        return _fail(f"cannot write: {one_line(error)}.")
    except KeyboardInterrupt:
        print("experiments: interrupted; see --help for --resume.", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    print(f"experiments: error: {message}", file=sys.stderr)
    return 2


def _known(name: str) -> str:
    if name in MOVED:
        raise UsageError(f"{name!r} is now {MOVED[name]!r}.")
    name = SHORT.get(name, name)
    if name not in NAMES:
        raise UsageError(
            f"PAPER.EXPERIMENT must be one of {', '.join(NAMES)}, got {name!r}. "
            "See python -m experiments --help."
        )
    return name


def _help() -> str:
    lines = [
        "usage: python -m experiments PAPER.EXPERIMENT [options]",
        "",
        "Every experiment runs offline and needs no option. real_data needs an extra.",
        "python -m experiments PAPER.EXPERIMENT --help lists its options.",
    ]
    for paper, entries in INDEX.items():
        room = importlib.import_module(f"experiments.{paper}")
        lines += ["", f"{room.__doc__}"]
        for name, (shows, tables, minutes) in entries.items():
            full = f"{paper}.{name}"
            took = f"{minutes:>3} min" if minutes else ""
            lines.append(f"  {full:<27} {shows:<40} {tables:<15} {took}".rstrip())
    lines += ["", "Besides:"]
    return "\n".join(lines + [f"  {name:<27} {OTHERS[name]}" for name in OTHERS])


if __name__ == "__main__":
    mtlopt.keep_memory()  # of this process, so not in `main`
    sys.exit(main())
