"""A trainer of Lightning with the callback and the trainer that people wrote for periflow_sdk."""

from pathlib import Path
from typing import Any, Optional, Union

import lightning.pytorch as pl
import periflow_sdk as pf
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT


# fmt: off
class PeriFlowCallback(Callback):
    def on_train_batch_start(self,
                             trainer: pl.Trainer,
                             pl_module: pl.LightningModule,
                             batch: Any,
                             batch_idx: int,
                             unused: int = 0) -> None:
        pf.start_step()

    def on_train_batch_end(self,
                           trainer: pl.Trainer,
                           pl_module: pl.LightningModule,
                           outputs: STEP_OUTPUT,
                           batch: Any,
                           batch_idx: int,
                           unused: int = 0) -> None:
        loss = float(outputs['loss'])
        pf.metric({
            "iteration": trainer.global_step,
            "loss": loss,
        })
        pf.end_step()


class PeriFlowTrainer(Trainer):
    def save_checkpoint(self,
                        filepath: Union[str, Path],
                        weights_only: bool = False,
                        storage_options: Optional[Any] = None) -> None:
        super().save_checkpoint(filepath, weights_only=weights_only, storage_options=storage_options)
        pf.upload_checkpoint()
# fmt: on


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        x, labels = batch
        return torch.nn.functional.cross_entropy(self.layer(x), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.arange(16) % 2)
        return torch.utils.data.DataLoader(data, batch_size=2)


def main():
    periflow_callback = PeriFlowCallback()
    checkpoint_callback = ModelCheckpoint("out", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = PeriFlowTrainer(
        max_epochs=2,
        callbacks=[periflow_callback, checkpoint_callback],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    pf.init(total_train_steps=16)
    trainer.fit(Model())


if __name__ == "__main__":
    main()
