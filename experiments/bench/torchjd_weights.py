"""TorchJD's task weights for the comparison in `aggregators`; a script.

The script reads lines of JSON, and answers each line. `{"weighting", "rows",
"gramians", "dtype", "device"}` makes TorchJD's object from an expression and calls it
once; the answer has its weights. `{"seconds"}` calls the object repeatedly for this
time; the answer has the times of the calls. The answer is `{"error"}` if TorchJD raises
an error or takes too long. PyTorch is imported when needed, so that the module can be
imported without it.
"""

# pyright: reportMissingImports=false

import argparse
import itertools
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Call = Callable[[], Any]


def timed_calls(call: Call, seconds: float) -> list[float]:
    """Calls for this many seconds, at least once; returns the seconds of each call."""
    times = []
    start = last = time.perf_counter()
    while not times or last - start < seconds:
        call()
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return times


def make_call(request: dict[str, Any]) -> Call:
    """Returns a function that gives TorchJD's weights of each Gramian in turn."""
    import torch
    from torchjd import aggregation

    torch.set_num_threads(1)
    torch.manual_seed(0)
    matrices = torch.tensor(request["gramians"], dtype=torch.float64)
    if request["rows"]:
        matrices = torch.linalg.cholesky(matrices)  # rows with this Gramian
    matrices = matrices.to(request["device"], getattr(torch, request["dtype"]))
    names = {**vars(aggregation), "T": matrices.shape[1]}
    weighting = eval(request["weighting"], names)
    inputs = itertools.cycle(matrices)
    on_gpu = matrices.is_cuda

    def call() -> list[float] | Any:
        weights = weighting(next(inputs))
        if on_gpu:
            torch.cuda.synchronize()
        return weights

    return call


def serve(
    requests: Iterable[str], make: Callable[[dict[str, Any]], Call], limit: float
) -> Iterator[str]:
    """Answers requests.

    Args:
        requests: Lines of JSON.
        make: Function from a request to the function to time.
        limit: Largest number of seconds for an answer; only on the main thread.
    """

    def stop(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"takes more than {limit:g} s")

    signal.signal(signal.SIGALRM, stop)
    call: Call | None = None
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            if "seconds" in request:
                assert call is not None
                answer = {"times": timed_calls(call, request["seconds"])}
            else:
                call = make(request)
                answer = {"weights": call().tolist()}
        except TimeoutError as error:
            answer = {"error": str(error)}
        except Exception as error:  # any error of a solver is its result
            first = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {first[0]}"}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        yield json.dumps(answer)


def main() -> None:
    """Serves until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=60.0)
    limit = parser.parse_args().limit
    warnings.simplefilter("ignore")
    # Output that solvers print must not be read as an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for answer in serve(sys.stdin, make_call, limit):
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
