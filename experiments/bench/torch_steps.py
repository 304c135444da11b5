"""Training steps in PyTorch and TorchJD that `steps` compares with, run as a script.

    torch_steps.py WORKLOAD NUM_TASKS BATCH_SIZE NUM_THREADS {default,keep}

It answers lines of JSON, `{"aggregator", "chunk", "steps"}`, with the seconds that so
many steps took: with TorchJD's aggregator, an expression in the names of
`torchjd.aggregation` and the number of tasks `T`, or on the summed loss in plain
PyTorch where it is null. "keep" is for `mtlopt.keep_memory`. PyTorch is imported when
needed, so that the module can be read without it.
"""

# pyright: reportMissingImports=false

import argparse
import itertools
import json
import os
import runpy
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Network(NamedTuple):
    """A network and a batch.

    encoder: from `inputs` to the latent. heads: a module for each task. losses: by
    `heads`, from the latent. joint: the heads as one module. total: the summed loss by
    `joint`, from the latent, as tightly as PyTorch allows. make_optimizer: from the
    parameters.
    """

    encoder: Any
    heads: Any
    losses: Callable[[Any], list[Any]]
    joint: Any
    total: Callable[[Any], Any]
    inputs: Any
    make_optimizer: Callable[[Any], Any]


def lenet(batch_size: int, _: int) -> Network:
    """The network of `workloads.lenet`."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    encoder = nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(320, 50), nn.ReLU()),
    )
    heads = nn.ModuleList([nn.Linear(50, 10), nn.Linear(50, 10)])
    labels = torch.randint(0, 10, (2, batch_size))
    images = torch.randn(batch_size, 1, 28, 28)
    return _branched(
        encoder, heads, lambda task, out: cross_entropy(out, labels[task]), images
    )


def synthetic_mlp(batch_size: int, _: int) -> Network:
    """The network of `workloads.synthetic_mlp`."""
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    def dense(sizes: list[int]) -> list[Any]:
        layers: list[Any] = []
        for one, two in itertools.pairwise(sizes):
            layers += [nn.Linear(one, two), nn.ReLU()]
        return layers

    encoder = nn.Sequential(*dense([2, 512, 512, 512]))
    heads = nn.ModuleList(
        nn.Sequential(*dense([512, 512, 512]), nn.Linear(512, out)) for out in (4, 1)
    )
    quadrants = torch.randint(0, 4, (batch_size,))
    inside = torch.randint(0, 2, (batch_size,)).float()

    def loss(task: int, out: Any) -> Any:
        if task == 0:
            return cross_entropy(out, quadrants)
        return binary_cross_entropy_with_logits(out[:, 0], inside)

    network = _branched(encoder, heads, loss, torch.randn(batch_size, 2))
    return network._replace(
        make_optimizer=lambda params: torch.optim.SGD(params, lr=1e-2)
    )


def transformer(batch_size: int, _: int) -> Network:
    """The network of `workloads.transformer`."""
    import torch
    from torch import nn
    from torch.nn.functional import mse_loss

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(1000, 256)
            self.positions = nn.Embedding(64, 256)
            self.norm = nn.LayerNorm(256)
            layer = nn.TransformerEncoderLayer(
                256, 4, 1024, dropout=0.0, activation="gelu", batch_first=True
            )
            self.layers = nn.TransformerEncoder(layer, 4)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            return self.layers(self.norm(x)).mean(1)

    heads = nn.ModuleList(
        nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
        for _ in range(3)
    )
    targets = torch.randn(3, batch_size)
    return _branched(
        Encoder(),
        heads,
        lambda task, out: mse_loss(out[:, 0], targets[task]),
        torch.randint(0, 1000, (batch_size, 64)),
    )


def wide_mlp(batch_size: int, num_tasks: int) -> Network:
    """The network of `workloads.wide_mlp`."""
    import torch
    from torch import nn

    layers: list[Any] = []
    for inputs in (128, 512, 512, 512):
        layers += [nn.Linear(inputs, 512), nn.ReLU()]
    return _stacked(
        nn.Sequential(*layers), 512, torch.randn(batch_size, 128), num_tasks
    )


def resnet18(batch_size: int, num_tasks: int) -> Network:
    """The network of `workloads.resnet18`; BatchNorm keeps no running statistics."""
    import torch
    from torch import nn

    def norm(channels: int) -> Any:
        return nn.BatchNorm2d(channels, track_running_stats=False)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)),
                nn.ReLU(),
                *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)),
            )
            self.shortcut = (
                nn.Identity()
                if inputs == outputs
                else nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
                )
            )

        def forward(self, x: Any) -> Any:
            return torch.relu(self.body(x) + self.shortcut(x))

    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU()]
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64, 128)):
        layers += [Block(inputs, outputs, 1 if stage == 0 else 2)]
        layers += [Block(outputs, outputs, 1)]
        inputs = outputs
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _stacked(encoder, 128, torch.randn(batch_size, 3, 32, 32), num_tasks)


def _branched(
    encoder: Any, heads: Any, loss: Callable[[int, Any], Any], inputs: Any
) -> Network:
    import torch

    def losses(z: Any) -> list[Any]:
        return [loss(task, head(z)) for task, head in enumerate(heads)]

    return Network(
        encoder,
        heads,
        losses,
        heads,
        lambda z: sum(losses(z)),
        inputs,
        lambda params: torch.optim.Adam(params, lr=1e-3),
    )


def _stacked(encoder: Any, features: int, inputs: Any, num_tasks: int) -> Network:
    """Forty binary heads: one matrix for the summed loss, modules for TorchJD."""
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    labels = torch.randint(0, 2, (len(inputs), num_tasks)).float()
    heads = nn.ModuleList(nn.Linear(features, 1) for _ in range(num_tasks))
    joint = nn.Linear(features, num_tasks)
    return Network(
        encoder,
        heads,
        lambda z: [
            cross_entropy(head(z)[:, 0], labels[:, task])
            for task, head in enumerate(heads)
        ],
        joint,
        lambda z: num_tasks * cross_entropy(joint(z), labels),
        inputs,
        lambda params: torch.optim.Adam(params, lr=1e-3),
    )


def make_step(
    network: Network, aggregator: str | None, chunk: int | None
) -> Callable[[], None]:
    """Returns a training step on the summed loss, or with TorchJD's aggregator."""
    shared = list(network.encoder.parameters())
    heads = network.joint if aggregator is None else network.heads
    optimizer = network.make_optimizer([*shared, *heads.parameters()])
    if aggregator is None:

        def plain() -> None:
            optimizer.zero_grad()
            network.total(network.encoder(network.inputs)).backward()
            optimizer.step()

        return plain

    from torchjd import aggregation, autojac

    combine = eval(aggregator, {**vars(aggregation), "T": len(network.heads)})

    def step() -> None:
        optimizer.zero_grad()
        z = network.encoder(network.inputs)
        autojac.mtl_backward(network.losses(z), features=z, parallel_chunk_size=chunk)
        autojac.jac_to_grad(shared, combine)
        optimizer.step()

    return step


def main() -> None:
    """Serves until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("num_tasks", type=int)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("num_threads", type=int)
    parser.add_argument("memory", choices=("default", "keep"))
    args = parser.parse_args()
    if args.memory == "keep":  # mtlopt itself needs JAX
        module = Path(__file__).parents[2] / "mtlopt" / "memory.py"
        runpy.run_path(str(module))["keep_memory"]()

    import torch

    warnings.simplefilter("ignore")
    # What solvers print must not be read as an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(args.num_threads)
    torch.manual_seed(0)
    network = globals()[args.workload](args.batch_size, args.num_tasks)
    steps: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = json.dumps([request["aggregator"], request["chunk"]])
        try:
            if key not in steps:
                steps[key] = make_step(network, request["aggregator"], request["chunk"])
                steps[key]()
            start = time.perf_counter()
            for _ in range(request["steps"]):
                steps[key]()
            answer = {"seconds": time.perf_counter() - start}
        except Exception as error:  # whatever a library raises is its result
            first = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {first[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
