import dataclasses
import json
import re

import pytest
import torch

from agents import SACConfig
from mtrl.errors import UserError
from mtrl.run_directory import RunDirectory
from mtrl.train import Schedule
from scripts import training
from scripts.command_line import parse_options
from scripts.config import MAY_DIFFER_ON_RESUME, Config
from scripts.presets import PRESETS, TOY_AGENT


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *[
            (name, [0, -1])
            for name in (
                *("total_steps", "envs_per_task", "batch_size", "replay_capacity"),
                *("eval_every", "eval_envs_per_task", "checkpoint_every", "log_every"),
            )
        ],
        *[(name, [-1]) for name in ("seed", "threads", "warmup_steps")],
        ("update_ratio", [0.0, -1.0, float("nan"), float("inf")]),
        ("eval_envs_per_task", [3, 100]),
        ("batch_size", [100_001]),
        ("envs_per_task", [100_001]),
        ("warmup_steps", [10_000_000]),
    ],
)
def test_a_value_that_cannot_work_is_named_with_its_option_and_a_remedy(name, values):
    for value in values:
        config = dataclasses.replace(Config(replay_capacity=100_000), **{name: value})
        flag = name.replace("_", "-")
        with pytest.raises(UserError, match=rf"^`--{flag}` is {value}: .+\.$") as caught:
            config.validate()
        assert "\n" not in str(caught.value)


def test_the_defaults_are_valid():
    Config().validate()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("benchmark", ["MT10", "MT50", "toy"])
def test_presets_are_valid_and_leave_their_mark(preset, benchmark):
    config = Config.for_benchmark((benchmark,), preset=preset)
    config.validate()
    assert config.preset == preset
    agent = PRESETS[preset].agent | (TOY_AGENT if benchmark == "toy" else {})
    for options, chosen in ((config, PRESETS[preset].options), (config.agent, agent)):
        for name, value in chosen.items():
            assert getattr(options, name) == value


@pytest.mark.parametrize("preset", PRESETS)
def test_all_presets_balance_critics_and_actor(preset):
    agent = Config.for_benchmark(("MT10",), preset=preset).agent
    assert agent.critic_weighting == agent.actor_weighting == "gradnorm+pcgrad"


def test_a_preset_gives_way_to_options_and_scales_with_the_budget(monkeypatch):
    arguments = ["train", "--preset", "paper", "--critic-width", "7", "--total-steps", "1000"]
    monkeypatch.setattr("sys.argv", arguments)
    config = training.parse("MT10")
    paper = PRESETS["paper"]
    assert config.agent.critic_width == 7
    assert config.agent.actor_width == paper.agent["actor_width"]
    assert config.batch_size == paper.options["batch_size"]
    assert (config.total_steps, config.eval_every, config.log_every) == (1000, 166, 10)


def test_what_a_preset_lacks_may_be_given_beside_it(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "--preset", "gpu", "--residual"])
    assert training.parse("MT10").agent.residual
    monkeypatch.setattr("sys.argv", ["train", "--residual", "--benchmark", "reach-v3", "push-v3"])
    with pytest.raises(UserError, match="`--critic-depth` must be odd"):
        training.parse("MT10")


def test_a_configuration_survives_json():
    config = Config(benchmark=("reach-v3", "push-v3"), agent=SACConfig(critic_width=7), seed=3)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("stored", "compile_"), [({"compile": True}, "on"), ({"compile": False}, "off"), ({}, "off")]
)
def test_a_run_from_before_it_was_compiled_by_itself_goes_on_as_it_was(stored, compile_):
    options = Config().to_json()
    del options["compile"]
    assert Config.from_json(options | stored).compile == compile_


def test_a_default_run_is_compiled_and_one_of_minutes_is_not():
    cpu = torch.device("cpu")
    for benchmark, expected in (("MT10", True), ("MT50", True), ("toy", False)):
        config = Config.for_benchmark((benchmark,))
        assert training.make_schedule(config, cpu).compile is expected
    short = Config.for_benchmark(("MT10",), total_steps=100_000)
    assert not training.make_schedule(short, cpu).compile


@pytest.mark.parametrize("change", ["removed", "unknown", "unknown in the agent"])
def test_a_configuration_of_another_version_is_refused(change):
    options = Config().to_json()
    if change == "removed":
        del options["agent"]
    elif change == "unknown":
        options["colour"] = "red"
    else:
        options["agent"]["colour"] = "red"
    with pytest.raises(UserError, match=r"config\.json does not fit this version"):
        Config.from_json(options)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        *[("", "batch_size", value) for value in ("64", 64.0, None, True)],
        *[("", "engine", "slow"), ("", "overlap", 1), ("", "benchmark", [1])],
        *[("agent", "critic_width", 8.5), ("agent", "discount", "high")],
        ("agent", "actor_weighting", "pgcrad"),
    ],
)
def test_a_configuration_of_other_types_is_refused(part, name, value):
    options = Config().to_json()
    (options[part] if part else options)[name] = value
    with pytest.raises(UserError, match=f"config.json does not fit .*`{name}` is"):
        Config.from_json(options)


def test_a_configuration_that_cannot_work_is_refused():
    with pytest.raises(UserError, match="--eval-envs-per-task"):
        Config.from_json(Config().to_json() | {"eval_envs_per_task": 3})


def test_options_and_schedule_speak_of_the_same_things():
    names = {field.name for field in dataclasses.fields(Config)}
    assert {field.name for field in dataclasses.fields(Schedule)} <= names
    assert names > MAY_DIFFER_ON_RESUME


def test_what_may_differ_on_resume_does_not_change_what_is_learned():
    learning = {"agent", "benchmark", "seed", "envs_per_task", "batch_size", "update_ratio"}
    assert not learning & MAY_DIFFER_ON_RESUME


@pytest.fixture
def parse(monkeypatch):
    def parse(*arguments, default=None):
        monkeypatch.setattr("sys.argv", ["train_mt10.py", *arguments])
        return parse_options(Config, default or Config())

    return parse


def test_nothing_on_the_command_line_gives_the_defaults(parse):
    default = Config(benchmark=("MT50",), seed=9)
    assert parse(default=default) == default


def test_one_benchmark_or_several_tasks(parse):
    assert parse("--benchmark", "toy").benchmark == ("toy",)
    several = ("reach-v3", "drawer-close-v3")
    assert parse("--benchmark", *several).benchmark == several


def test_the_agents_options_need_no_prefix(parse):
    config = parse("--critic-weighting", "pcgrad", "--actor-width", "7", "--no-layer-norm")
    expected = dataclasses.replace(
        Config().agent, critic_weighting="pcgrad", actor_width=7, layer_norm=False
    )
    assert config.agent == expected


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], r"'tpu' .*'--device'.* \('auto', 'cpu', 'cuda'\)"),
        (["--seed", "one"], r"--seed: .*'one'"),
        (["--seed"], r"'--seed'"),
        (["--critic-widht", "3"], r"--critic-widht.*did you mean --critic-width"),
        (["reach-v3"], r"reach-v3"),
        (["--wandb", "maybe", "--seed", "1"], r"'maybe' .*'--wandb'.*'disabled'"),
    ],
)
def test_a_misunderstanding_is_one_line_whatever_the_terminals_width(
    parse, monkeypatch, columns, arguments, message
):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(UserError, match=message) as caught:
        parse(*arguments)
    assert re.fullmatch(r"[ -~]+; --help explains every option", str(caught.value))


def test_help_documents_every_option_with_its_default(parse, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    help_text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for kind in (Config, SACConfig):
        for field in dataclasses.fields(kind):
            if field.name == "agent":
                continue
            name = "import" if field.name == "imports" else field.name  # a keyword of Python's
            flag = re.escape("--" + name.replace("_", "-"))
            documented = rf"{flag}\b[^-]*(?:--no-{flag[4:]})?.{{10,300}}?\(default: "
            assert re.search(documented, help_text), flag


@pytest.fixture
def train_options(monkeypatch):
    def train_options(*arguments, benchmark="MT10"):
        monkeypatch.setattr("sys.argv", ["train_mt10.py", *map(str, arguments)])
        return training.parse(benchmark)

    return train_options


@pytest.mark.parametrize(
    ("arguments", "total_steps", "eval_every", "warmup_steps"),
    [
        ((), 3_000_000, 500_000, 60_000),
        (("--total-steps", 20_000_000), 20_000_000, 3_333_333, 80_000),
        (("--benchmark", "toy"), 60_000, 10_000, 1_200),
        # The script's own default, but given: what follows must follow from it all the same.
        (("--benchmark", "toy", "--total-steps", 3_000_000), 3_000_000, 500_000, 32_000),
        (("--benchmark", "reach-v3", "--eval-every", 7), 300_000, 7, 6_000),
    ],
)
def test_what_is_left_out_follows_from_benchmark_and_budget(
    train_options, arguments, total_steps, eval_every, warmup_steps
):
    config = train_options(*arguments)
    assert (config.total_steps, config.eval_every) == (total_steps, eval_every)
    assert config.warmup_steps == warmup_steps
    config.validate()


def test_the_defaults_are_those_of_mt10(train_options):
    assert train_options() == Config()


def test_a_resumed_run_keeps_the_options_that_are_left_out(train_options, tmp_path):
    config = train_options("--benchmark", "toy", "--critic-width", 9, "--total-steps", 500)
    RunDirectory.create(tmp_path / "run", config.to_json(), default_name="run").close()
    resumed = train_options("--resume", "--run-dir", tmp_path / "run", "--log-every", 3)
    expected = dataclasses.replace(config, log_every=3, resume=True, run_dir=tmp_path / "run")
    assert resumed == expected


@pytest.mark.parametrize(
    ("values", "named"), [("categorical", "--value-bins"), ("scalar", "--batch-size")]
)
def test_memory_is_asked_for_in_the_name_of_an_option_that_takes_it(values, named):
    agent = SACConfig(critic_values=values, value_bins=10**9)
    needs = training.memory_needs(Config(agent=agent, batch_size=10**5))
    assert max(needs, key=needs.get).split()[0] == named
    assert any("value-bins" in option for option in needs) == (values == "categorical")


UNIFORM = {"critic_weighting": "uniform", "actor_weighting": "uniform"}


@pytest.mark.parametrize(
    ("options", "batch_size", "precision", "gradients"),
    [
        ({}, 128, "fp32", 10),
        ({}, 128, "auto", 5),  # perhaps in bf16
        ({}, 33, "fp32", 1),  # in pieces, where they are large
        ({}, 1, "fp32", 1),  # so few rows are never multiplied out
        (UNIFORM, 128, "tf32", 10),  # watched
        ({**UNIFORM, "watch_conflicts": False}, 128, "fp32", 1),
    ],
)
def test_memory_holds_a_gradient_a_task_only_where_one_is_multiplied_out(
    options, batch_size, precision, gradients
):
    agent = SACConfig(critic_width=1000, **options)
    config = Config(agent=agent, batch_size=batch_size, precision=precision)
    needs = training.memory_needs(config)
    both = 2 * 4 * 1000 * (1000 + 39 + 4 + 1)
    least = gradients * both
    assert 0.95 * least < needs["--critic-width 1000"] < 1.05 * least + both
