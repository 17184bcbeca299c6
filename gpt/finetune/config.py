"""How a pre-trained model is fine-tuned, whatever the task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FinetuneConfig:
    """`finetune` in conf/finetune.yaml. Raises ValueError for values outside their range."""

    lm_weight: float  # of the auxiliary objective: L3 = L2 + lm_weight * L1 ([G] section 3.2)
    dropout: float  # on what the new head reads
    layers: int | None  # how many pre-trained blocks are taken over, with the embeddings; None: all
    epochs: float
    val_fraction: float  # the share of the training examples that is held out, to choose the checkpoint by
    drop_unknown: bool  # leave out characters that the tokenizer does not know, rather than refuse the texts

    def __post_init__(self) -> None:
        if not 0 <= self.lm_weight <= 1e6:
            raise ValueError(f"lm_weight = {self.lm_weight}: must be from 0 to 1e6; set 0 for the task alone, or 0.5")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: not a probability below 1; set it to at least 0 and below 1")
        if self.layers is not None and self.layers < 0:
            raise ValueError(f"layers = {self.layers}: must not be negative; set 0 for the embeddings alone, or null for all")
        if not 0 < self.epochs <= 1e6:
            raise ValueError(f"epochs = {self.epochs}: must be above 0 and at most 1e6; set for instance 3")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction = {self.val_fraction}: leaves a part empty; set it between 0 and 1, such as 0.1")
