"""A training script as people wrote it for periflow_sdk: a small network learns handwritten digits.

``python train_digits.py [seconds per step]``; checkpoints go into the folder ``checkpoints``.
"""

import sys
import time
from pathlib import Path

import periflow_sdk as pf
import torch
from sklearn.datasets import load_digits
from torch import nn

STEPS, SAVE_INTERVAL, EVALUATION_INTERVAL = 300, 50, 75
PERIOD_S = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0


def evaluate(network, images, labels):
    network.eval()
    with torch.no_grad():
        accuracy = (network(images).argmax(dim=1) == labels).float().mean().item()
    network.train()
    return accuracy


def main():
    torch.manual_seed(1)
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    loss_function = nn.CrossEntropyLoss()

    pf.init(total_train_steps=STEPS, local_log_name="digits.log")
    for step in range(1, STEPS + 1):
        batch = torch.randint(0, 1500, (64,))
        with pf.train_step():
            time.sleep(PERIOD_S)
            optimizer.zero_grad()
            loss = loss_function(network(images[batch]), labels[batch])
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        pf.metric(
            {
                "iteration": step,
                "loss": loss.item(),
                "train/grad norm": float("nan") if step == 123 else norm.item(),
                "phase": "warm-up" if step < 20 else "training",
            }
        )
        if step % EVALUATION_INTERVAL == 0:
            pf.metric({"iteration": step, "eval/accuracy": evaluate(network, images[1500:], labels[1500:])})
        if step % SAVE_INTERVAL == 0 or pf.is_emergency_save():
            torch.save(network.state_dict(), Path("checkpoints") / f"{step}.pt")
            pf.upload_checkpoint()


if __name__ == "__main__":
    Path("checkpoints").mkdir(exist_ok=True)
    main()
