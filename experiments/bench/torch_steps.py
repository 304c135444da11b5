"""Training steps in PyTorch and TorchJD for the comparison in `steps`; a script.

    torch_steps.py WORKLOAD NUM_TASKS BATCH_SIZE NUM_THREADS {default,keep}

The script reads lines of JSON, `{"aggregator", "setting", "bare", "steps"}`, and
answers with the seconds that this number of steps took and their processor time.
`aggregator` is an expression for TorchJD's aggregator. It may use the names of
`torchjd.aggregation`, the number of tasks `T` and `formula_weights`. If it is null, the
steps use the summed loss in plain PyTorch. `setting` is one of `SETTINGS`, or "autogram
of samples" if each sample has one task. `bare` steps compute gradients and make no
update. "keep" means `mtlopt.keep_memory`. PyTorch is imported when needed, so that the
module can be imported without it.
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

# Ways to make TorchJD's step: gradients of all tasks at once, gradients one after the
# other, or the Gramian by TorchJD's engine, followed by one weighted backward pass.
SETTINGS = ("default", "chunk 1", "autogram")


class Network(NamedTuple):
    """A network and a batch.

    encoder: from `inputs` to the latent. heads: a module for each task. losses: from
    the latent to the losses, with `heads`. joint: the heads as one module. total: from
    the latent to the summed loss, with `joint`, in the fastest form that PyTorch
    allows. make_optimizer: from the parameters to the optimizer. each: from the latent
    to a vector of losses, with `joint`. These are the losses of the tasks, or of the
    samples if `averages` `[tasks, samples]` turns them into the losses of the tasks.
    """

    encoder: Any
    heads: Any
    losses: Callable[[Any], list[Any]]
    joint: Any
    total: Callable[[Any], Any]
    inputs: Any
    make_optimizer: Callable[[Any], Any]
    each: Callable[[Any], Any]
    averages: Any = None


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

    return _stacked(_dense_512(), 512, torch.randn(batch_size, 128), num_tasks)


wide_mlp_16 = wide_mlp_64 = wide_mlp_pair = wide_mlp


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


def _dense_512() -> Any:
    """Four layers of 512."""
    from torch import nn

    layers: list[Any] = []
    for inputs in (128, 512, 512, 512):
        layers += [nn.Linear(inputs, 512), nn.ReLU()]
    return nn.Sequential(*layers)


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
        lambda z: torch.stack(losses(z)),
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
        lambda z: cross_entropy(joint(z), labels, reduction="none").mean(0),
    )


def samples(batch_size: int, num_tasks: int) -> Network:
    """The network of `samples`, each of whose samples has one task."""
    import torch
    from torch import nn

    tasks = torch.randperm(batch_size) % num_tasks
    targets = torch.randn(batch_size)
    owned = (tasks == torch.arange(num_tasks)[:, None]).float()
    averages = owned / owned.sum(1, keepdim=True)
    parts = [torch.nonzero(own)[:, 0] for own in owned]
    heads = nn.ModuleList(nn.Linear(512, 1, bias=False) for _ in range(num_tasks))
    joint = nn.Embedding(num_tasks, 512)
    nn.init.normal_(joint.weight, std=512**-0.5)

    def each(z: Any) -> Any:
        return ((z * joint(tasks)).sum(1) - targets) ** 2

    return Network(
        _dense_512(),
        heads,
        lambda z: [
            ((head(z[part])[:, 0] - targets[part]) ** 2).mean()
            for head, part in zip(heads, parts, strict=True)
        ],
        joint,
        lambda z: (averages @ each(z)).sum(),
        torch.randn(batch_size, 128),
        lambda params: torch.optim.Adam(params, lr=1e-3),
        each,
        averages,
    )


def formula_weights(gramian: Any) -> Any:
    """The weights of `samples.formula_weights`."""
    shares = gramian.sum(1) / gramian.abs().sum()
    return gramian.diagonal() / gramian.trace() + shares / 2


def make_step(
    network: Network, aggregator: str | None, setting: str, bare: bool
) -> Callable[[], None]:
    """Returns a training step on the summed loss, or with TorchJD's aggregator."""
    of_tasks = aggregator is not None and not setting.startswith("autogram")
    heads = network.heads if of_tasks else network.joint
    shared, own = list(network.encoder.parameters()), list(heads.parameters())
    optimizer = network.make_optimizer([*shared, *own])
    backward: Callable[[Any], None] | None = None
    if aggregator is not None:
        from torchjd import aggregation

        names = {"T": len(network.heads), "formula_weights": formula_weights}
        combine = eval(aggregator, {**vars(aggregation), **names})
        make = _by_jacobian if of_tasks else _by_autogram
        backward = make(network, combine, setting, shared, own)

    def step() -> None:
        optimizer.zero_grad()
        z = network.encoder(network.inputs)
        if backward is None:
            network.total(z).backward()
        else:
            backward(z)
        if not bare:
            optimizer.step()

    return step


def _by_jacobian(
    network: Network, combine: Any, setting: str, shared: list[Any], _: list[Any]
) -> Callable[[Any], None]:
    """Computes gradients from the latent, by TorchJD's function for several tasks."""
    from torchjd import autojac

    chunk = {"default": None, "chunk 1": 1}[setting]

    def backward(z: Any) -> None:
        autojac.mtl_backward(network.losses(z), features=z, parallel_chunk_size=chunk)
        autojac.jac_to_grad(shared, combine)

    return backward


def _by_autogram(
    network: Network, combine: Any, setting: str, shared: list[Any], own: list[Any]
) -> Callable[[Any], None]:
    """Computes the Gramian with TorchJD's engine, then one weighted backward pass.

    The engine can treat the samples of a batch separately. The Gramian of the tasks is
    then computed from the Gramian of the samples.
    """
    import torch
    from torchjd.aggregation import Aggregator
    from torchjd.autogram import Engine

    if isinstance(combine, Aggregator):
        if not hasattr(combine, "gramian_weighting"):
            raise ValueError("takes rows")
        combine = combine.gramian_weighting
    by_sample = setting == "autogram of samples"
    engine = Engine(network.encoder, batch_dim=0 if by_sample else None)
    averages = network.averages

    def backward(z: Any) -> None:
        each = network.each(z)
        losses = each if averages is None else averages @ each
        gramian = engine.compute_gramian(each if by_sample else losses)
        if by_sample:
            gramian = torch.einsum("si,ij,tj->st", averages, gramian, averages)
        losses.backward(combine(gramian), retain_graph=True, inputs=shared)
        losses.sum().backward(inputs=own)

    return backward


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
    # Output that solvers print must not be read as an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(args.num_threads)
    steps: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        wanted = [request[name] for name in ("aggregator", "setting", "bare")]
        key = json.dumps(wanted)
        try:
            if key not in steps:  # a new network: engines leave hooks in it
                torch.manual_seed(0)
                network = globals()[args.workload](args.batch_size, args.num_tasks)
                steps[key] = make_step(network, *wanted)
                steps[key]()
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(request["steps"]):
                steps[key]()
            answer = {
                "seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - cpu_start,
            }
        except Exception as error:  # any error of a library is its result
            first = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {first[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
