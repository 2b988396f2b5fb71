"""Train one agent on Meta-World's MT50: `train_mt10.py` with other defaults."""

from scripts.config import Config
from scripts.training import main

if __name__ == "__main__":
    main(Config(benchmark=("MT50",), total_steps=5_000_000, warmup_steps=100_000, envs_per_task=1))
