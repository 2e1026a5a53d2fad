"""A trainer of transformers with the callback that people wrote for periflow_sdk.

``python callback_huggingface.py [steps, or -1 for an epoch]``
"""

import sys

import periflow_sdk as pf
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments


class PeriFlowCallback(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        pf.start_step()

    def on_step_end(self, args, state, control, **kwargs):
        pf.end_step()

    def on_save(self, args, state, control, **kwargs):
        pf.upload_checkpoint()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def main():
    training_args = TrainingArguments(
        output_dir="out",
        max_steps=int(sys.argv[1]),
        num_train_epochs=1,
        per_device_train_batch_size=2,
        save_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    train_dataset = [{"x": torch.randn(4), "labels": torch.tensor(number % 2)} for number in range(16)]
    pf.init(total_train_steps=training_args.max_steps)
    callback = PeriFlowCallback()
    trainer = Trainer(model=Model(), args=training_args, train_dataset=train_dataset, callbacks=[callback])
    trainer.train()


if __name__ == "__main__":
    main()
