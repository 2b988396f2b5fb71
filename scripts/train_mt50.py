"""Train one agent on Meta-World's MT50: `train_mt10.py` with another default benchmark."""

from scripts.training import main

if __name__ == "__main__":
    main("MT50")
