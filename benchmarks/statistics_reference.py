"""Let rliable compute what `mtrl.statistics` is tested against, and store it with the scores.

    python -m venv /tmp/rliable && /tmp/rliable/bin/pip install rliable 'pandas<3'
    /tmp/rliable/bin/python benchmarks/statistics_reference.py

rliable needs packages that mtrl does not, so what it said is kept in tests/mtrl/data/rliable.json.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rliable import library, metrics

STORED = Path(__file__).parents[1] / "tests" / "mtrl" / "data" / "rliable.json"
SAMPLES = 50_000


def draw(runs: int, gain: float, generator: np.random.Generator) -> np.ndarray:
    """Draw success rates over 50 goals, ``(runs, 10)``, from a hopeless task to a solved one.

    All runs solve the last task, so that there are ties.
    """
    strength = np.linspace(0.1, 4, 9)
    chances = generator.beta(strength + gain, 4.3 - strength, size=(runs, 9))
    return np.column_stack([generator.binomial(50, chances) / 50, np.ones(runs)])


def ask(statistic: Callable[..., float], *scores: np.ndarray) -> dict[str, Any]:
    """Return rliable's estimate of a statistic of one group of runs, or of two, with interval."""
    given = scores if len(scores) > 1 else scores[0]
    estimates, intervals = library.get_interval_estimates(
        {"it": given},
        lambda *groups: np.array([statistic(*groups)]),
        reps=SAMPLES,
        random_state=np.random.RandomState(1),
    )
    return {"estimate": float(estimates["it"][0]), "interval": intervals["it"][:, 0].tolist()}


def main() -> None:
    """Compute and store; the probability of improvement alone takes minutes."""
    generator = np.random.default_rng(2021)
    x, y = draw(5, 0.0, generator), draw(7, 0.7, generator)
    results = {
        "iqm": ask(metrics.aggregate_iqm, x),
        "mean": ask(metrics.aggregate_mean, x),
        "probability_of_improvement": ask(metrics.probability_of_improvement, x, y),
    }
    stored = {
        "rliable": importlib.metadata.version("rliable"),
        "command": "python benchmarks/statistics_reference.py",
        "samples": SAMPLES,
        "x": x.tolist(),
        "y": y.tolist(),
        "results": results,
    }
    STORED.parent.mkdir(exist_ok=True)
    STORED.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
