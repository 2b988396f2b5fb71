"""The options of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import envs
from agents import SACConfig
from mtrl.compiled import CompileName
from mtrl.device import PrecisionName
from mtrl.errors import UserError

from .command_line import Imports
from .presets import PRESETS, TOY_AGENT, PresetName

MAY_DIFFER_ON_RESUME = frozenset(
    {
        *("total_steps", "eval_every", "checkpoint_every", "log_every", "eval_envs_per_task"),
        *("wandb", "device", "threads", "simulation_threads", "compile"),
    }
)
"""Options that change how long a run goes on, what is told of it, or where and how fast it learns,
but not what."""

_NOT_PART_OF_A_RUN = ("run_dir", "resume", "imports")


@dataclass(frozen=True)
class Basis:
    """The options from which those that are left out follow; their names are those of `Config`."""

    benchmark: tuple[str, ...]
    preset: PresetName = "default"
    total_steps: int = 0
    """0 where it is left out."""
    run_dir: Path | None = None
    resume: bool = False
    imports: Imports = ()


@dataclass(frozen=True)
class Config:
    """Train one multi-task agent; steps are environment steps over all tasks.

    Defaults follow from --benchmark, --preset and --total-steps; given beside --help, those are
    shown.
    """

    benchmark: tuple[str, ...] = ("MT10",)
    """MT10, MT25, MT50, toy, one task's name (reach-v3), or several."""
    imports: Imports = ()
    """Modules to import first, as they register tasks (docs/engine.md); also on resuming."""
    preset: PresetName = "default"
    """Where options that are left out come from; see docs/recipe.md."""
    total_steps: int = 3_000_000
    """When training ends, after a whole step of all environments. The published protocol has 2
    million per task: 20000000 for MT10."""
    envs_per_task: int = 8
    """Environments of each task, stepped together."""
    seed: int = 1
    """Decides everything that is drawn. Same seed, same machine, same threads: same run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the agent learns; auto takes a GPU if there is one."""
    precision: PrecisionName = "auto"
    """What matrix products are computed in; auto takes bf16 where the hardware has it. Parameters,
    losses and log-probabilities are fp32 always. tf32 lets a GPU round fp32 products."""
    threads: int = 0
    """CPU threads that learn; 0 for all cores, or with --overlap for those that do not simulate."""
    simulation_threads: int = 0
    """Threads that simulate, which changes no result; 0 for as many as learn, or with --overlap
    for half of the cores."""
    overlap: bool = True
    """Learn while the environments take their next step, from what was there before it."""
    compile: CompileName = "auto"
    """Compile an update to one function: half a minute at the start, for updates of ten tasks that
    take 0.4 to 0.7 of the time on a CPU; large ones gain little in fp32. Needs g++ or clang++; auto
    compiles where there is one, if a run has at least 20000 updates. On a GPU, where only "on"
    compiles, it is a third of the launches, needs Triton, and has not been run yet."""
    agent: SACConfig = field(default_factory=lambda: SACConfig(**PRESETS["default"].agent))
    """Networks, losses, weightings."""
    batch_size: int = 32
    """Transitions per task in an update."""
    update_ratio: float = 0.5
    """Updates per environment step of a task: 0.5 is one after every second step of each task."""
    warmup_steps: int = 60_000
    """Steps with random actions and without updates, at the start."""
    replay_capacity: int = 100_000
    """Observations remembered per task; a transition takes one, an episode's end one more."""
    engine: Literal["fast", "official"] = "fast"
    """What simulates Meta-World: the compiled engine, or the official classes it is equal to."""
    reward_version: Literal["v1", "v2"] = "v2"
    """Meta-World's reward functions."""
    eval_every: int = 500_000
    """Steps between evaluations, each of which plays all 50 goals of every task once."""
    eval_envs_per_task: int = 25
    """Environments of each task in an evaluation; must divide 50. Few are better with the official
    engine, where each has a model of its own (20 MB)."""
    checkpoint_every: int = 500_000
    """Steps between checkpoints. One that follows an evaluation can be kept as the best."""
    log_every: int = 30_000
    """Steps between lines of training metrics."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto uses your wandb account if a key is present, and keeps files to sync later if not."""
    run_dir: Path | None = None
    """Where the run is stored; by default runs/ and a name made of benchmark, seed and time."""
    resume: bool = False
    """Continue the run in --run-dir."""

    @classmethod
    def for_benchmark(
        cls,
        benchmark: tuple[str, ...],
        total_steps: int | None = None,
        preset: PresetName = "default",
    ) -> Config:
        """Return a preset for a benchmark, in proportion to its size and to the budget.

        Args:
            benchmark: As on the command line.
            total_steps: The budget; by default the preset's, or 15,000 of a toy task.
            preset: Its name.

        Raises:
            UserError: If there is no such benchmark.
        """
        names = envs.task_names(benchmark)
        chosen = PRESETS[preset]
        toy = names[0].startswith("toy-")
        total_steps = total_steps or len(names) * (15_000 if toy else chosen.steps_per_task)
        return cls(
            benchmark=benchmark,
            preset=preset,
            total_steps=total_steps,
            warmup_steps=min(total_steps // 50, 8_000 * len(names)),
            # Each takes some seconds, of minutes in between; see `benchmarks/evaluating.py`.
            eval_every=max(1, total_steps // 6),
            checkpoint_every=max(1, total_steps // 6),
            log_every=max(1, total_steps // 100),
            agent=SACConfig(**{**chosen.agent, **(TOY_AGENT if toy else {})}),
            **chosen.options,
        )

    @classmethod
    def without_options(cls) -> dict[str, Any]:
        """Return what each option counts as in a run that was stored before there was such a one.

        An agent's options are added so that their own defaults, not a preset's, change nothing.
        What a run did before there was an overlap was to take turns.
        """
        return cls(agent=SACConfig(), overlap=False, compile="off").to_json()

    @staticmethod
    def renewed(options: dict[str, Any]) -> dict[str, Any]:
        """Spell the options of an earlier run as this version does."""
        compiled = options.get("compile", False)
        if isinstance(compiled, bool):  # before there was "auto"
            return {**options, "compile": "on" if compiled else "off"}
        return options

    def validate(self) -> None:
        """Refuse what cannot work, before anything is built.

        Raises:
            UserError: Naming the option, its value and the remedy.
        """
        for name in (
            "total_steps",
            "envs_per_task",
            "batch_size",
            "replay_capacity",
            "eval_every",
            "eval_envs_per_task",
            "checkpoint_every",
            "log_every",
        ):
            self._require(name, getattr(self, name) >= 1, "give at least 1")
        for name in ("seed", "threads", "simulation_threads", "warmup_steps"):
            self._require(name, getattr(self, name) >= 0, "give at least 0")
        for name in ("threads", "simulation_threads"):
            self._require(name, getattr(self, name) <= 1024, "give at most 1024")
        self._require(
            "update_ratio", 0 < self.update_ratio <= 1e6, "give more than 0 and at most 1000000"
        )
        self._require(
            "eval_envs_per_task", 50 % self.eval_envs_per_task == 0, "give 1, 2, 5, 10, 25 or 50"
        )
        self._require(
            "warmup_steps",
            self.warmup_steps < self.total_steps,
            f"give fewer than --total-steps {self.total_steps}",
        )
        capacity = f"--replay-capacity {self.replay_capacity}"
        self._require(
            "batch_size", self.batch_size <= self.replay_capacity, f"the batch must fit {capacity}"
        )
        self._require(
            "envs_per_task",
            3 * self.envs_per_task <= self.replay_capacity,
            f"a step takes up to three observations of each, which must fit {capacity}",
        )
        if self.resume and self.run_dir is None:
            raise UserError("`--resume` needs a run to go on with: name it with --run-dir.")

    def _require(self, name: str, condition: bool, remedy: str) -> None:
        if not condition:
            flag = name.replace("_", "-")
            raise UserError(f"`--{flag}` is {getattr(self, name)}: {remedy}.")

    def to_json(self) -> dict[str, Any]:
        """Return what defines the run, for its config.json; not where it is stored."""
        options = dataclasses.asdict(self)
        return {name: value for name, value in options.items() if name not in _NOT_PART_OF_A_RUN}

    @classmethod
    def from_json(cls, options: dict[str, Any]) -> Config:
        """Rebuild a configuration from what `to_json` gave.

        Raises:
            UserError: If the options are not those of this version, or cannot work.
        """
        options = cls.renewed(options)
        try:
            _require_types(SACConfig, options["agent"])
            _require_types(cls, options)
            agent = SACConfig(**options["agent"])
            config = cls(**options | {"agent": agent, "benchmark": tuple(options["benchmark"])})
        except (KeyError, TypeError) as error:
            raise UserError(
                f"config.json does not fit this version of mtrl ({error}): "
                "use the version that is written in it."
            ) from error
        config.validate()
        return config


def _require_types(kind: type, options: dict[str, Any]) -> None:
    """Refuse what no command line could have given, of those options that are there.

    Raises:
        TypeError: Naming the option.
    """
    for name, hint in get_type_hints(kind).items():
        value = options.get(name)
        if name not in options or name in ("agent", *_NOT_PART_OF_A_RUN):
            continue
        if get_origin(hint) is Literal:
            fits = value in get_args(hint)
        elif hint is float:
            fits = type(value) in (int, float)
        elif get_origin(hint) is tuple:
            fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        else:
            fits = type(value) is hint
        if not fits:
            raise TypeError(f"`{name}` is {value!r}")
