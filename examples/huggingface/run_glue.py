"""Train a tiny BERT on a task of GLUE: is a sentence about a film kind or not (SST-2), does one follow another (MNLI)?

    python run_glue.py --output_dir checkpoints --use_cpu --eval_strategy epoch --logging_steps 10

Takes every argument of ``transformers.TrainingArguments``. Without the task in ``--data``, made-up sentences take its
place. The model is made from a configuration and the vocabulary from the sentences, so nothing is downloaded, unless
``--model_name_or_path`` says otherwise.
"""

import csv
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
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


class Task(NamedTuple):
    """How a task of GLUE comes on disk."""

    folder: str
    dev: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]


TASKS = {
    "sst2": Task("SST-2", "dev.tsv", ("sentence",), "label", ("0", "1")),
    "mnli": Task(
        "MNLI",
        "dev_matched.tsv",
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
    ),
}


@dataclass
class DataArguments:
    """What to train, and on what."""

    data: Path = field(default=Path("data"), metadata={"help": "folder that holds SST-2/train.tsv and so on"})
    task_name: str = field(default="sst2", metadata={"help": f"one of {', '.join(TASKS)}, in any spelling"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "default: a tiny one, made on the spot"})
    max_seq_length: int = field(default=64, metadata={"help": "longer texts are cut"})
    cache_dir: str | None = field(default=None, metadata={"help": "where models that are downloaded are kept"})


def parse_args():
    parser = HfArgumentParser((DataArguments, TrainingArguments))
    if not hasattr(TrainingArguments, "logging_dir"):  # since version 5, which reads a variable
        parser.add_argument("--logging_dir", help="folder for --report_to tensorboard")
    data_args, training_args, *others = parser.parse_args_into_dataclasses()
    if folders := [each.logging_dir for each in others if each.logging_dir]:
        os.environ["TENSORBOARD_LOGGING_DIR"] = folders[0]
    return data_args, training_args


def load_data(folder, task_name="sst2"):
    """Return pairs of one text or two and the number of a label, to train and to evaluate on."""
    task = TASKS[task_name.lower().replace("-", "")]
    if (folder / task.folder).is_dir():
        return [read_pairs(folder / task.folder / name, task) for name in ("train.tsv", task.dev)]
    print(f"no {task.folder} in {folder}; training on made-up sentences")
    pairs = [make_pair() for _ in range(1280)]
    return pairs[:1024], pairs[1024:]


def read_pairs(path, task):
    """Read a file of a task; sentences of which people disagreed are left out, as is the custom."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            (tuple(row[name] for name in task.texts), task.labels.index(row[task.label]))
            for row in rows
            if row[task.label] in task.labels
        ]


def make_pair():
    """Make a sentence up, of which the longer part decides."""
    subjects = ["the film", "this plot", "the cast", "its music", "the last scene"]
    kind, unkind = ["good", "moving", "clever", "fresh", "funny"], ["dull", "empty", "clumsy", "stale", "bleak"]
    is_kind = random.random() < 0.5
    longer, shorter = (kind, unkind) if is_kind else (unkind, kind)
    clauses = [f"{random.choice(subjects)} is {random.choice(words)}" for words in (longer, longer, shorter)]
    random.shuffle(clauses)
    return (", ".join(clauses),), int(is_kind)


def make_tokenizer(sentences, max_length):
    """Make a tokenizer that knows the most frequent words."""
    words = Counter(word for sentence in sentences for word, _ in SPLIT.pre_tokenize_str(sentence.lower()))
    vocabulary = [*SPECIAL, *(word for word, _ in words.most_common(VOCABULARY_SIZE - len(SPECIAL)))]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))  # noqa: S106  # no secret
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = SPLIT
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"]))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **names)


def encode(pairs, tokenizer):
    """Turn pairs into what the model reads."""
    return [{**tokenizer(*texts, truncation=True), "labels": label} for texts, label in pairs]


def make_model(args, sentences):
    """Return a model and its tokenizer."""
    classes = len(TASKS[args.task_name.lower().replace("-", "")].labels)
    if args.model_name_or_path:
        place = {"pretrained_model_name_or_path": args.model_name_or_path, "cache_dir": args.cache_dir}
        tokenizer = AutoTokenizer.from_pretrained(**place, model_max_length=args.max_seq_length)
        return AutoModelForSequenceClassification.from_pretrained(
            **place, num_labels=classes, ignore_mismatched_sizes=True
        ), tokenizer
    tokenizer = make_tokenizer(sentences, args.max_seq_length)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=args.max_seq_length,
        num_labels=classes,
    )
    return BertForSequenceClassification(config), tokenizer


def compute_metrics(prediction):
    return {"accuracy": float((np.argmax(prediction.predictions, axis=1) == prediction.label_ids).mean())}


def main(data_args, training_args):
    set_seed(training_args.seed)
    train_pairs, eval_pairs = load_data(data_args.data, data_args.task_name)
    model, tokenizer = make_model(data_args, (text for texts, _ in train_pairs for text in texts))
    trainer = Trainer(
        model=model,
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
