"""``python -m experiments PAPER.EXPERIMENT [options]``: runs one experiment."""

import errno
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import mtlopt
from experiments.lab.settings import UsageError, one_line


class Entry(NamedTuple):
    """A line of the index.

    Attributes:
      shows: in a few words.
      tables: tables or figures of the paper that it makes.
      minutes: of a run without options on two CPU cores.
    """

    shows: str
    tables: str
    minutes: int


# By paper and name, which are the module in this folder. The module has a `main(argv)`,
# and is imported only if it is asked for.
INDEX = {
    "aligned_mtl": {
        "multimnist": Entry("two overlaid digits, all methods", "Table 2", 2),
        "toy": Entry("two losses of two parameters", "Fig. 1", 2),
        "cityscapes3": Entry("streets: classes, instances, disparity", "Table 3", 10),
        "celeba": Entry("40 attributes by ResNet-18", "Tables 3, 5", 10),
        "seven_scenes": Entry("the pose of a camera", "Tables 4, 6", 5),
    },
    "ate_sg": {
        "synthetic": Entry("points by quadrant and circle", "Tables 2, 3", 1),
        "wireless": Entry("radio signals by modulation and type", "Tables 5, 6", 3),
        "mammography": Entry("calcifications, SG, Adam and their ATE", "Table 8", 6),
    },
    "mtl_io": {
        "task_groups": Entry(
            "tasks in turn or in groups, IUS and IO", "Tables 3, 4", 2
        ),
        "nyuv2": Entry("rooms: segmentation, depth, normals", "Table 1", 10),
        "cityscapes7": Entry("streets: seven categories as tasks", "Table 2", 10),
        "celeba_groups": Entry(
            "40 attributes, IUS and IO in groups", "Tables 3, 4", 10
        ),
    },
    "fast_line_search": {
        "multimnist": Entry("line search on two digits", "Fig. 3, 4, 6", 2),
        "cifar10": Entry("line search on ten one-vs-rest tasks", "Fig. 5", 3),
        "bert": Entry("line search on sentence pairs", "Table 3", 3),
    },
}
OTHERS = {
    "doctor": "do the tasks conflict, and what may help: two overlaid digits",
    "bench.sharded": "several devices: losses, memory, communication",
}
NAMES = (*(f"{paper}.{name}" for paper in INDEX for name in INDEX[paper]), *OTHERS)
# The one short name, for the README's command.
SHORT = {"multimnist": "aligned_mtl.multimnist"}
# Names of before there was a folder for each paper.
MOVED = {
    "toy": "aligned_mtl.toy",
    "sharded": "bench.sharded",
    "ate_synthetic": "ate_sg.synthetic",
    "ate_wireless": "ate_sg.wireless",
    "ate_mammography": "ate_sg.mammography",
    "fbls_multimnist": "fast_line_search.multimnist",
    "fbls_cifar10": "fast_line_search.cifar10",
    "fbls_bert": "fast_line_search.bert",
    "task_groups": "mtl_io.task_groups",
    "nyuv2": "mtl_io.nyuv2",
    "cityscapes7": "mtl_io.cityscapes7",
    "celeba_groups": "mtl_io.celeba_groups",
    "cityscapes3": "aligned_mtl.cityscapes3",
    "celeba": "aligned_mtl.celeba",
    "seven_scenes": "aligned_mtl.seven_scenes",
}


_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the experiment that the first argument names.

    Args:
      argv: arguments, by default those of the command line.

    Returns:
      The exit code: 2 for a mistake of the user, 130 if interrupted.
    """
    name, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    try:
        module = importlib.import_module(f"experiments.{_known(name)}")
        module.main(options)
    except ModuleNotFoundError as error:
        print(
            f"experiments: error: the package {error.name!r} is missing. "
            'Install what experiments need: pip install -e ".[experiments]".',
            file=sys.stderr,
        )
        return 2
    except UsageError as error:
        print(f"experiments: error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _NO_WRITING:
            raise
        print(f"experiments: error: cannot write: {one_line(error)}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("experiments: interrupted; see --help for --resume.", file=sys.stderr)
        return 130
    return 0


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
    lines = []
    for paper, entries in INDEX.items():
        room = importlib.import_module(f"experiments.{paper}")
        lines += ["", f"{room.__doc__}"]
        for name, (shows, tables, minutes) in entries.items():
            full = f"{paper}.{name}"
            lines.append(f"  {full:<27} {shows:<40} {tables:<12} {minutes:>3} min")
    lines += ["", "Besides:"]
    lines += [f"  {name:<27} {shows}" for name, shows in OTHERS.items()]
    return "\n".join(
        [
            "usage: python -m experiments PAPER.EXPERIMENT [options]",
            "",
            "Every experiment runs offline with no option, in minutes on a CPU.",
            "python -m experiments PAPER.EXPERIMENT --help lists the options of one.",
            *lines,
        ]
    )


if __name__ == "__main__":
    mtlopt.keep_memory()  # of this process, so not in `main`
    sys.exit(main())
