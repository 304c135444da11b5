"""The PyTorch LeNet step that `step_time` compares with, run as a script.

It answers each line `N` on its input with the seconds that N training steps took.
PyTorch is imported in `main`, so that the module can be read without it.
"""

# pyright: reportMissingImports=false

import argparse
import sys
import time


def main() -> None:
    """Serves timings until its input ends."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=256)
    batch_size = parser.parse_args().batch_size
    torch.set_num_threads(1)
    torch.manual_seed(0)

    encoder = nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(320, 50), nn.ReLU()),
    )
    heads = nn.ModuleList([nn.Linear(50, 10), nn.Linear(50, 10)])
    optimizer = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], lr=1e-3)
    images = torch.randn(batch_size, 1, 28, 28)
    labels = torch.randint(0, 10, (2, batch_size))

    def step() -> None:
        optimizer.zero_grad()
        z = encoder(images)
        left, right = (head(z) for head in heads)
        loss = cross_entropy(left, labels[0]) + cross_entropy(right, labels[1])
        loss.backward()
        optimizer.step()

    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
