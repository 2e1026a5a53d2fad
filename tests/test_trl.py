"""The callback for ``transformers`` records what trainers of TRL do, with adapters of PEFT."""

from pathlib import Path
from typing import Any

import pytest

import periflow_otel as pf
from periflow_otel import names, testing

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("trl", reason="trl is not installed")
pytest.importorskip("peft", reason="peft is not installed")

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from periflow_otel.integrations.huggingface import PeriFlowCallback

WORDS = ["<pad>", "<eos>", "<unk>", "the", "cat", "dog", "sat", "ran", "."]
SENTENCES = ["the cat sat .", "the dog ran .", "the cat ran .", "the dog sat ."] * 4
PAIRS = [{"prompt": "the", "chosen": " cat sat .", "rejected": " dog ."}] * 16

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of a few words."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_trainer(kind: type[Any], config: type[Any], data: list[dict[str, str]]) -> Any:
    """Return a trainer of a tiny model that does eight steps."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_positions=32, n_embd=8, n_layer=1, n_head=1, eos_token_id=1)
    )
    args = config(
        output_dir="out", max_steps=8, per_device_train_batch_size=2, save_steps=4, logging_steps=2, report_to="none",
        use_cpu=True, bf16=False, disable_tqdm=True, eval_strategy="steps", eval_steps=4, gradient_checkpointing=False,
    )  # fmt: skip
    dataset = Dataset.from_list(data)
    adapter = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    return kind(
        model, args=args, train_dataset=dataset, eval_dataset=dataset, processing_class=make_tokenizer(),
        peft_config=adapter, callbacks=[PeriFlowCallback()],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "data", "key"),
    [
        (SFTTrainer, SFTConfig, [{"text": sentence} for sentence in SENTENCES], "mean_token_accuracy"),
        (DPOTrainer, DPOConfig, PAIRS, "rewards/margins"),
    ],
)
def test_a_trainer_of_trl_is_recorded(
    captured: testing.Captured, kind: type[Any], config: type[Any], data: list[dict[str, str]], key: str
):
    """Steps, what it logs of its own, evaluations, and checkpoints that hold an adapter alone."""
    trainer = make_trainer(kind, config, data)
    trainer.train()
    pf.shutdown()
    assert [step.number for step in captured.steps] == list(range(1, 9))
    assert len(captured.metrics(key)) == 4
    assert len(captured.metrics("eval_loss")) == 2
    assert captured.checkpoints == [4, 8]
    assert (Path("out") / "checkpoint-8" / "adapter_model.safetensors").is_file()
    [run] = [span for span in captured.spans if span.name == names.RUN_SPAN]
    assert (run.attributes[names.OUTCOME], run.attributes["periflow.config.max_steps"]) == ("finished", 8)
