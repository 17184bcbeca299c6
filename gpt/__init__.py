"""A GPT from scratch (Radford et al. 2018; Vaswani et al. 2017), trained on characters with Lightning.

Read `model.py` first; it needs torch alone. `data.py`, `module.py` and `callbacks.py` put it into Lightning;
nothing here knows Hydra, which lives in `scripts/`.
"""
