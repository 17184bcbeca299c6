"""A run from its configuration to its result. Read `train.py` first; it tells the story, and the other files are its parts."""
