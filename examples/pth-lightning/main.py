"""Train an autoencoder on MNIST: squeeze an image of a digit through three numbers.

    python main.py --checkpoint-dir checkpoints

Without MNIST in ``--data``, scikit-learn's handwritten digits take its place.
"""

import argparse
import gzip
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody calls it
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from periflow_otel.integrations.lightning import PeriFlowCallback

SIZE = 28
IDX_HEADER_BYTES = 16


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default="data", help="folder that holds train-images-idx3-ubyte")
    parser.add_argument("--checkpoint-dir", type=Path, default="checkpoints", help="goes on from the last one in it")
    parser.add_argument("--num-epochs", type=int, default=5)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", default="auto")
    return parser.parse_args()


class LitAutoEncoder(pl.LightningModule):
    def __init__(self, hidden_dim=64):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(SIZE * SIZE, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 3))
        self.decoder = nn.Sequential(nn.Linear(3, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, SIZE * SIZE))

    def training_step(self, batch, batch_idx):
        return self.common_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.common_step(batch, "val")

    def common_step(self, batch, stage):
        (images,) = batch
        loss = F.mse_loss(self.decoder(self.encoder(images)), images)
        self.log(f"{stage}_loss", loss, sync_dist=stage == "val")
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class MyDataModule(pl.LightningDataModule):
    def __init__(self, folder, batch_size=32):
        super().__init__()
        images = TensorDataset(load_images(folder))
        self.train_set, self.val_set = random_split(images, [0.9, 0.1], torch.Generator().manual_seed(0))
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=self.batch_size)


def load_images(folder):
    """Return the training images of MNIST, each as a row of numbers from 0 to 1."""
    for path in folder.glob("**/train-images-idx3-ubyte*"):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            images = np.frombuffer(file.read(), dtype=np.uint8, offset=IDX_HEADER_BYTES)
        return torch.tensor(images.reshape(-1, SIZE * SIZE), dtype=torch.float32) / 255
    print(f"no MNIST in {folder}; training on scikit-learn's digits")
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    return F.interpolate(images, size=SIZE).flatten(start_dim=1)


def main(args):
    pl.seed_everything(0)
    checkpoint_callback = ModelCheckpoint(args.checkpoint_dir, filename="checkpoint-{step:07d}", save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=args.num_epochs,
        accelerator=args.accelerator,
        devices=args.devices,
        callbacks=[PeriFlowCallback(), checkpoint_callback],
        log_every_n_steps=10,
        logger=False,
    )
    checkpoints = sorted(args.checkpoint_dir.glob("*.ckpt"))
    trainer.fit(
        LitAutoEncoder(), datamodule=MyDataModule(args.data), ckpt_path=checkpoints[-1] if checkpoints else None
    )


if __name__ == "__main__":
    main(parse_args())
