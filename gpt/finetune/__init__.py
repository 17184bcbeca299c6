"""Fine-tuning a pre-trained GPT: Radford et al. 2018, sections 3.2, 3.3, 4.2 and 5."""
