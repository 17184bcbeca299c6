"""Fine-tuning a pre-trained GPT: sections 3.2, 3.3, 4.2 and 5 of [G], Radford et al. 2018 (see gpt.model)."""
