"""Train a residual network on CIFAR-10 or CIFAR-100, on any number of processes (DistributedDataParallel).

    python main.py --use-cpu
    torchrun --nproc_per_node 2 main.py --use-cpu --save checkpoints --load checkpoints

Without it in ``--data-path``, scikit-learn's handwritten digits take its place.
"""

import argparse
import pickle
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as torch_ddp
import torch.nn.functional as F  # noqa: N812  # as everybody calls it
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import periflow_otel as pf

MODELS = {
    "small": ((16, 32, 64), (1, 1, 1), 1),
    "resnet18": ((64, 128, 256, 512), (2, 2, 2, 2), 1),
    "resnet50": ((64, 128, 256, 512), (3, 4, 6, 3), 4),
}
"""Channels and blocks of each stage, and by how much a block widens its output."""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--dataset", choices=["cifar10", "cifar100"], default="cifar10")
    parser.add_argument("--data-path", type=Path, default="data", help="holds cifar-10-batches-py or cifar-100-python")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step and process")
    parser.add_argument("--total-epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--num-dataloader-workers", type=int, default=0)
    parser.add_argument("--log-interval", type=int, default=10, help="steps between two lines of output")
    parser.add_argument("--test-interval", type=int, default=20, help="steps between two evaluations")
    parser.add_argument("--save", type=Path, help="folder to save checkpoints in")
    parser.add_argument("--save-interval", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--load", type=Path, help="folder of the checkpoint to go on from, if it has one")
    parser.add_argument("--use-cpu", action="store_true")
    return parser.parse_args()


def load_data(folder, dataset="cifar10"):
    """Return the images and labels of a dataset, to train and to test on."""
    name, train, test = {
        "cifar10": ("cifar-10-batches-py", "data_batch_*", "test_batch"),
        "cifar100": ("cifar-100-python", "train", "test"),
    }[dataset]
    cifar = folder / name
    if cifar.is_dir():
        batches = [read_batch(path) for path in sorted(cifar.glob(train))]
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return TensorDataset(images, labels), TensorDataset(*read_batch(cifar / test))
    if is_first():
        print(f"no {name} in {folder}; training on scikit-learn's digits")
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=32).expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target)
    return TensorDataset(images[:1536], labels[:1536]), TensorDataset(images[1536:], labels[1536:])


def read_batch(path):
    """Read one file of CIFAR in its Python version."""
    with path.open("rb") as file:
        batch = pickle.load(file, encoding="bytes")  # noqa: S301  # this is how CIFAR-10 comes
    images = np.asarray(batch[b"data"], dtype=np.float32).reshape(-1, 3, 32, 32) / 255
    return torch.from_numpy(images), torch.tensor(batch[b"fine_labels" if b"fine_labels" in batch else b"labels"])


class Block(nn.Module):
    """Two convolutions, or a wide one between two of single pixels, and a way around them."""

    def __init__(self, inputs, width, outputs, stride):
        super().__init__()
        sizes = [(1, 1), (3, stride), (1, 1)] if outputs > width else [(3, stride), (3, 1)]
        channels = [inputs, *[width] * (len(sizes) - 1), outputs]
        layers = []
        for (size, step), before, after in zip(sizes, channels, channels[1:], strict=False):
            convolution = nn.Conv2d(before, after, size, step, padding=size // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.around = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        return F.relu(self.layers(x) + self.around(x))


def make_network(model="small", classes=10):
    widths, depths, expansion = MODELS[model]
    layers, channels = [nn.Conv2d(3, widths[0], 3, stride=2, padding=1)], widths[0]
    for width, depth in zip(widths, depths, strict=True):
        for number in range(depth):
            stride = 2 if number == 0 and width > widths[0] else 1
            layers.append(Block(channels, width, width * expansion, stride))
            channels = width * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def train_step(inputs, labels, model, loss_function, optimizer, lr_scheduler):
    optimizer.zero_grad()
    loss = loss_function(model(inputs), labels)
    loss.backward()
    optimizer.step()
    learning_rate = lr_scheduler.get_last_lr()[0]
    lr_scheduler.step()
    return loss, learning_rate


@torch.no_grad()
def evaluate(model, loader, device):
    """Return the accuracy over all processes."""
    model.eval()
    counts = torch.zeros(2, device=device)
    for inputs, labels in loader:
        found = model(inputs.to(device)).argmax(dim=1)
        counts += torch.tensor([(found == labels.to(device)).sum(), len(labels)], device=device)
    torch_ddp.all_reduce(counts)
    model.train()
    return (counts[0] / counts[1]).item()


def save(path, **state):
    """Write a checkpoint that is either whole or not there; return when all processes may count on it."""
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    torch_ddp.barrier()


def is_first():
    return torch_ddp.get_rank() == 0


def main(args):
    torch.manual_seed(0)
    device = torch.device("cpu")
    if not args.use_cpu:
        device = torch.device("cuda", torch_ddp.get_node_local_rank(0))
        torch.cuda.set_device(device)
    train_set, test_set = load_data(args.data_path, args.dataset)
    sampler = DistributedSampler(train_set)
    workers = {"batch_size": args.batch_size, "num_workers": args.num_dataloader_workers}
    train_loader = DataLoader(train_set, sampler=sampler, **workers)
    test_loader = DataLoader(test_set, sampler=DistributedSampler(test_set, shuffle=False), **workers)
    total_steps = args.total_epochs * len(train_loader)

    net = DistributedDataParallel(make_network(args.model, 100 if args.dataset == "cifar100" else 10).to(device))
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=args.learning_rate, momentum=0.9, weight_decay=5e-4)
    lr_scheduler = CosineAnnealingLR(optimizer, T_max=total_steps)

    latest_step = 0
    if args.load and (args.load / "checkpoint.pt").exists():
        checkpoint = torch.load(args.load / "checkpoint.pt", map_location=device)
        latest_step = checkpoint["latest_step"]
        net.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])

    pf.init(total_train_steps=total_steps, initial_step=latest_step, config=vars(args))
    step = latest_step
    for epoch in range(latest_step // len(train_loader), args.total_epochs):
        sampler.set_epoch(epoch)
        # The batches that the checkpoint has seen come first, as the order depends on the epoch alone.
        for inputs, labels in islice(train_loader, step % len(train_loader), None):
            step += 1
            start_time = time.time()
            with pf.train_step():
                loss, learning_rate = train_step(
                    inputs=inputs.to(device),
                    labels=labels.to(device),
                    model=net,
                    loss_function=loss_function,
                    optimizer=optimizer,
                    lr_scheduler=lr_scheduler,
                )
                if not args.use_cpu:
                    torch.cuda.synchronize()
                end_time = time.time()
            pf.metric({"loss": loss, "learning_rate": learning_rate})
            if is_first() and step % args.log_interval == 0:
                print(f"step {step} of {total_steps}: loss {loss.item():.4f}, {end_time - start_time:.3f} s")

            if step % args.test_interval == 0:
                with pf.span("evaluation"):
                    accuracy = evaluate(net, test_loader, device)
                pf.metric({"accuracy": accuracy})
                if is_first():
                    print(f"step {step}: accuracy {accuracy:.1%}")

            if args.save and (step % args.save_interval == 0 or pf.is_emergency_save()):
                save(
                    args.save / "checkpoint.pt",
                    latest_step=step,
                    model=net.state_dict(),
                    optimizer=optimizer.state_dict(),
                    lr_scheduler=lr_scheduler.state_dict(),
                )
                pf.upload_checkpoint()


if __name__ == "__main__":
    arguments = parse_args()
    backend = "gloo" if arguments.use_cpu else "nccl"
    if torch_ddp.is_torchelastic_launched():
        torch_ddp.init_process_group(backend)
    else:
        torch_ddp.init_process_group(backend, store=torch_ddp.HashStore(), rank=0, world_size=1)
    main(arguments)
    torch_ddp.destroy_process_group()
