"""``python -m experiments NAME [options]``: runs one experiment."""

import importlib
import sys
from collections.abc import Sequence

import mtlopt
from experiments.cli import UsageError, one_line

# Name of the module in this folder, and what `--help` says of it. The module has a
# `main(argv)`, and is imported only if it is asked for.
EXPERIMENTS = {
    "multimnist": "two overlaid digits, all methods (Table 2 of Aligned-MTL)",
    "doctor": "two overlaid digits: do the tasks conflict, and what may help",
    "toy": "two losses of two parameters, paths of all methods (Fig. 1 of Aligned-MTL)",
    "sharded": "a small network on several devices: losses, memory, communication",
    "ate_synthetic": "points by quadrant and circle (Tables 2, 3 of ATE-SG)",
    "ate_wireless": "radio signals by modulation and type (Tables 5, 6 of ATE-SG)",
    "ate_mammography": "calcifications, SG, Adam and their ATE (Table 8 of ATE-SG)",
    "fbls_multimnist": "line search on two digits (Fig. 3, 4, 6 of Fast Line Search)",
    "fbls_cifar10": "line search on ten one-vs-rest tasks (Fig. 5 of Fast Line Search)",
    "fbls_bert": "line search on sentence pairs (Table 3 of Fast Line Search)",
    "task_groups": "tasks in turn or in groups, IUS and IO (Tables 3, 4 of MTL-IO)",
    "nyuv2": "rooms: segmentation, depth, normals (Table 1 of MTL-IO)",
    "cityscapes7": "streets: seven categories as tasks (Table 2 of MTL-IO)",
    "celeba_groups": "40 attributes, IUS and IO in groups (Table 3 of MTL-IO)",
    "cityscapes3": "streets: classes, instances, disparity (Table 3 of Aligned-MTL)",
    "celeba": "40 attributes by ResNet-18 (Tables 3, 5 of Aligned-MTL)",
    "seven_scenes": "the pose of a camera (Tables 4, 6 of Aligned-MTL)",
}


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
        if name not in EXPERIMENTS:
            raise UsageError(
                f"NAME must be one of {', '.join(EXPERIMENTS)}, got {name!r}. "
                "See python -m experiments --help."
            )
        importlib.import_module(f"experiments.{name}").main(options)
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
    except KeyboardInterrupt:
        print("experiments: interrupted; see --help for --resume.", file=sys.stderr)
        return 130
    return 0


def _help() -> str:
    width = max(map(len, EXPERIMENTS))
    lines = [f"  {name:<{width}}  {text}" for name, text in EXPERIMENTS.items()]
    return "\n".join(
        [
            "usage: python -m experiments NAME [options]",
            "",
            "Every experiment runs offline with no option, in minutes on a CPU.",
            "python -m experiments NAME --help lists the options of one.",
            "",
            "experiments:",
            *lines,
        ]
    )


if __name__ == "__main__":
    mtlopt.keep_memory()  # of this process, so not in `main`
    sys.exit(main())
