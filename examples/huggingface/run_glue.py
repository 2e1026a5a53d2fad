"""Train a tiny BERT on SST-2 of GLUE: is a sentence about a film kind or not?

    python run_glue.py --output_dir checkpoints --use_cpu --eval_strategy epoch --logging_steps 10

Takes every argument of ``transformers.TrainingArguments``. Without SST-2 in ``--data``, made-up sentences take its
place. The model is made from a configuration and the vocabulary from the sentences, so nothing is downloaded.
"""

import csv
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from periflow_otel.integrations.huggingface import PeriFlowCallback

VOCABULARY_SIZE = 8000
SPLIT = pre_tokenizers.Whitespace()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@dataclass
class DataArguments:
    """What to train on."""

    data: Path = field(default=Path("data"), metadata={"help": "folder that holds SST-2/train.tsv and SST-2/dev.tsv"})


def parse_args():
    return HfArgumentParser((DataArguments, TrainingArguments)).parse_args_into_dataclasses()


def load_data(folder):
    """Return pairs of a sentence and 0 or 1, to train and to evaluate on."""
    if (folder / "SST-2").is_dir():
        return [read_pairs(folder / "SST-2" / name) for name in ("train.tsv", "dev.tsv")]
    print(f"no SST-2 in {folder}; training on made-up sentences")
    pairs = [make_pair() for _ in range(1280)]
    return pairs[:1024], pairs[1024:]


def read_pairs(path):
    """Read a file of SST-2."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], int(row["label"])) for row in rows]


def make_pair():
    """Make a sentence up, of which the longer part decides."""
    subjects = ["the film", "this plot", "the cast", "its music", "the last scene"]
    kind, unkind = ["good", "moving", "clever", "fresh", "funny"], ["dull", "empty", "clumsy", "stale", "bleak"]
    is_kind = random.random() < 0.5
    longer, shorter = (kind, unkind) if is_kind else (unkind, kind)
    clauses = [f"{random.choice(subjects)} is {random.choice(words)}" for words in (longer, longer, shorter)]
    random.shuffle(clauses)
    return ", ".join(clauses), int(is_kind)


def make_tokenizer(sentences):
    """Make a tokenizer that knows the most frequent words."""
    words = Counter(word for sentence in sentences for word, _ in SPLIT.pre_tokenize_str(sentence.lower()))
    vocabulary = [*SPECIAL, *(word for word, _ in words.most_common(VOCABULARY_SIZE - len(SPECIAL)))]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))  # noqa: S106  # no secret
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = SPLIT
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"]))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def encode(pairs, tokenizer):
    """Turn pairs into what the model reads."""
    return [{**tokenizer(sentence, truncation=True), "labels": label} for sentence, label in pairs]


def compute_metrics(prediction):
    return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def main(data_args, training_args):
    set_seed(training_args.seed)
    train_pairs, eval_pairs = load_data(data_args.data)
    tokenizer = make_tokenizer(sentence for sentence, _ in train_pairs)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=training_args,
        train_dataset=encode(train_pairs, tokenizer),
        eval_dataset=encode(eval_pairs, tokenizer),
        compute_metrics=compute_metrics,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[PeriFlowCallback(saves_in_emergency=True)],
    )
    folder = Path(training_args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)


if __name__ == "__main__":
    main(*parse_args())
