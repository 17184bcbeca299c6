"""A GPT from scratch (Radford et al. 2018; Vaswani et al. 2017), trained on characters with PyTorch Lightning.

Read the modules of this folder in this order: model, attention, tokenizer, corpus, data, optim, muon, module, generate,
checkpoint, config. `model.py` needs PyTorch alone. The folders are for later: `runs/` trains, `callbacks/` watches a training,
`cli/` knows Hydra, and `extras/` opens doors to other systems.
"""
