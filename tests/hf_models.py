"""Small BERT-like and ViT-like models with two heads, and rows for them, for the tests of the HuggingFace adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel, Trainer, TrainingArguments, ViTConfig, ViTModel
from transformers.utils import ModelOutput

CLASSES = 3
TASKS = ("sentiment", "score")
WORDS = 40


@dataclass
class TwoOutputs(ModelOutput):
    """Outputs by task, and one that belongs to no task."""

    sentiment: Tensor | None = None
    score: Tensor | None = None
    features: Tensor | None = None


class TwoHeads(PreTrainedModel):
    """A trunk and two heads on its first token."""

    base_model_prefix = "trunk"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: Any, trunk: nn.Module) -> None:
        super().__init__(config)
        self.trunk = trunk
        self.sentiment = nn.Linear(config.hidden_size, CLASSES)
        self.score = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def _heads(self, states: Tensor) -> TwoOutputs:
        z = torch.tanh(states[:, 0])
        return TwoOutputs(sentiment=self.sentiment(z), score=self.score(z).squeeze(-1), features=z)


class TwoHeadedBert(TwoHeads):
    config_class = BertConfig

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, BertModel(config, add_pooling_layer=False))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TwoOutputs:
        return self._heads(self.trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)


class TwoHeadedViT(TwoHeads):
    config_class = ViTConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config, ViTModel(config, add_pooling_layer=False))

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> TwoOutputs:
        return self._heads(self.trunk(pixel_values=pixel_values, **kwargs).last_hidden_state)


def bert(dropout: float = 0.0, seed: int = 0) -> TwoHeadedBert:
    """A seeded model of words."""
    torch.manual_seed(seed)
    return TwoHeadedBert(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def vit(seed: int = 0) -> TwoHeadedViT:
    """A seeded model of images."""
    torch.manual_seed(seed)
    return TwoHeadedViT(
        ViTConfig(
            image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    )


def texts(count: int = 22, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one length, with a label column per task."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(4, WORDS, (count, 6), generator=generator)
    return [
        {"input_ids": row, "attention_mask": [1] * len(row), "sentiment": sum(row) % CLASSES, "score": sum(row) / 50}
        for row in words.tolist()
    ]


def images(count: int = 16, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with an image, and a label column per task."""
    pixels = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return [
        {
            "pixel_values": image,
            "sentiment": int(image[0].mean() > 0) + int(image[1].mean() > 0),
            "score": float(image.mean()),
        }
        for image in pixels
    ]


def trainer_of(folder: Any, model: nn.Module, rows: Any, *, cls: Any = Trainer, **options: Any) -> Any:
    """A quiet Trainer on the CPU. Options that it has itself go to it, the others to its arguments."""
    own = {
        name: options.pop(name)
        for name in (
            "eval_dataset",
            "data_collator",
            "optimizers",
            "callbacks",
            "compute_loss_func",
            "criterion",
            "model_init",
        )
        if name in options
    }
    arguments = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return cls(model, TrainingArguments(str(folder), **{**arguments, **options}), train_dataset=rows, **own)
