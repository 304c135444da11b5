"""Our training steps in a separate process, run as a module.

    python -m experiments.bench.jax_steps WORKLOAD NUM_THREADS {default,keep}

The process reads lines of JSON, `{"step", "steps"}`. `step` is a method of the library,
or "plain" for the summed loss, and `steps` is a number of steps. The process answers
with the seconds that these steps took.
"""

import argparse
import json
import os
import sys

from experiments.bench.machine import MEMORY, choose_memory, pin_to_one_thread
from experiments.bench.steps import PLAIN, Block, compiled
from experiments.bench.workloads import WORKLOADS, method_step, plain_step


def main() -> None:
    """Serves until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("num_threads", type=int)
    parser.add_argument("memory", choices=MEMORY)
    args = parser.parse_args()
    choose_memory(args.memory)
    if args.num_threads == 1:
        pin_to_one_thread(max(os.sched_getaffinity(0)))
    workload = WORKLOADS[args.workload]()
    blocks: dict[str, Block] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request["step"]
        if name not in blocks:
            step = (
                plain_step(workload) if name == PLAIN else method_step(workload, name)
            )
            blocks[name] = Block(compiled(workload, *step), workload)
        block = blocks[name]
        block.num_steps = request["steps"]
        seconds = block() * block.num_steps
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
