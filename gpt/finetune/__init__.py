"""Fine-tuning, sections 3.2, 3.3, 4.2 and 5 of [G], which the files of this folder cite by that letter.

[G] is Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*.
"""
