"""Tries all cases of damage in one process, and prints how each attempt ended.

As a script, it writes a small release of every data set to a folder, replaces one file
after the other and loads. `test_damage` reads what it prints.
"""

import json
import resource
import sys
import time
from pathlib import Path

from experiments.data import cifar10
from tests.experiments.data.damage_cases import CASES
from tests.experiments.data.small_releases import LOADERS, NUM_EACH, write_releases

PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
PROGRAMS += ("os.spawn", "os.forkpty", "pickle.find_class", "socket.connect")


def load_all(release, root):
    """Loads a release and reads every sample of it."""
    loaded = LOADERS[release](root / release)
    if hasattr(loaded, "read"):
        for place in range(len(loaded)):
            loaded[place]


def attempt(case, root, started):
    """Damages a file, loads, and puts the file back."""
    path = root / case.release / case.file
    old = path.read_bytes()
    path.unlink()
    case.damage(path, old)
    started.clear()
    kinds, message, begin = [], "", time.perf_counter()
    try:
        load_all(case.release, root)
    except Exception as error:
        kinds, message = [kind.__name__ for kind in type(error).__mro__], str(error)
    seconds, programs = time.perf_counter() - begin, list(started)
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    path.write_bytes(old)
    return {
        "kinds": kinds,
        "message": message,
        "seconds": seconds,
        "programs": programs,
        "peak": peak(),
    }


def peak() -> int:
    """MiB of memory, at most, until now."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def main(root: Path) -> None:
    started: list[str] = []

    def hook(event, arguments):
        if event in PROGRAMS:
            started.append(event)

    cifar10._NUM_EACH = NUM_EACH
    write_releases(root)
    before = peak()
    for release in LOADERS:
        load_all(release, root)
    sys.addaudithook(hook)
    records = [attempt(case, root, started) for case in CASES]
    json.dump({"before": before, "records": records}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
