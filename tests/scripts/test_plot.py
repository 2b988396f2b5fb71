"""What `scripts/plot.py` leaves behind, read back as pictures."""

import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from scripts.figures import STYLE, draw_curves, draw_heatmap, draw_tasks, save
from scripts.runs import read_groups

NAMES = ("curves", "tasks", "heatmap")
SVG = "{http://www.w3.org/2000/svg}"
BLUE, VERMILION = "#0072B2", "#D55E00"


@pytest.fixture
def studies(make_run):
    """Three runs of one configuration, one of another."""
    for seed in (1, 2, 3):
        rising = [[0.1 * seed, 0.2], [0.3 * seed, 0.5], [0.3 * seed, 1.0]]
        make_run(f"many_seed{seed}", rising, (1000, 2000, 3000))
    make_run("single$cost$", [[0.1, 0.0], [0.4, 0.4]])
    return ["many_seed1", "many_seed2", "many_seed3", "single$cost$"]


@pytest.fixture
def groups(studies, tmp_path):
    return read_groups([str(tmp_path / name) for name in studies])


@pytest.fixture
def plot(run, tmp_path_factory):
    """Run the script; matplotlib's cache of fonts is made once, not in each test's empty home."""
    cache = tmp_path_factory.getbasetemp() / "matplotlib"
    return lambda *options: run("plot", *options, environment={"MPLCONFIGDIR": str(cache)})


def texts(path):
    return [element.text for element in ElementTree.parse(path).iter(f"{SVG}text")]


def share(picture, colour):
    """Return the share of pixels of one colour."""
    return (np.abs(picture[..., :3] - to_rgb(colour)).max(axis=-1) < 0.02).mean()


def test_three_pictures_are_drawn_in_two_forms(studies, plot, tmp_path):
    result = plot(*studies, "--output", "a/b", "--dpi", "60")
    assert result.code == 0, result.err
    assert result.err == ""
    files = [f"a/b/{name}.{ending}" for name in NAMES for ending in ("png", "svg")]
    assert result.out.splitlines() == files
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == sorted(
        file.removeprefix("a/b/") for file in files
    )
    for name in NAMES:
        picture = imread(tmp_path / f"a/b/{name}.png")
        assert share(picture, "white") > 0.2
        if name != "heatmap":
            assert share(picture, BLUE) > 0.0003
            assert share(picture, VERMILION) > 0.0003
        written = texts(tmp_path / f"a/b/{name}.svg")
        assert any(text.startswith("a, b: ") for text in written)
        steps = [", 3,000 steps", ", 2,000 steps"] if name == "tasks" else ["", ""]
        assert f"many (3 runs){steps[0]}" in written
        assert f"single$cost$ (1 run){steps[1]}" in written
    assert imread(tmp_path / "a/b/curves.png").shape[:2] == (4 * 60, 9 * 60)


def test_the_same_runs_give_the_same_bytes_in_any_process(studies, plot, groups, tmp_path):
    assert plot(*studies, "--output", "there", "--statistic", "iqm", "--dpi", "50").code == 0
    with mpl.rc_context(STYLE):
        for path in save(draw_curves(groups, "iqm"), tmp_path / "curves", dpi=50):
            assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    assert "IQM of success" in texts(tmp_path / "there" / "curves.svg")


def test_a_real_training_can_be_drawn(finished, plot, tmp_path):
    assert plot("run", "--dpi", "50").code == 0
    assert "toy-mirror" in texts(tmp_path / "plots" / "heatmap.svg")
    assert texts(tmp_path / "plots" / "tasks.svg")


def test_curves_go_through_the_evaluations_and_only_several_runs_have_a_band(groups):
    by_steps, by_time = draw_curves(groups, "mean").axes
    many, _ = groups
    for axes, unit in ((by_steps, 1), (by_time, 1000)):
        lines = axes.get_lines()
        for line, group in zip(lines, groups, strict=True):
            x, y = line.get_data()
            np.testing.assert_allclose(np.asarray(x) * unit, group.curve.steps)
            np.testing.assert_allclose(y, group.curve.success.mean(axis=(1, 2)))
        (band,) = axes.collections
        assert band.get_facecolor()[0, :3] == pytest.approx(to_rgb(lines[0].get_color()))
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() < many.curve.success.mean(axis=(1, 2)).min()
    assert by_time.get_xlabel() == "wall clock, minutes"


def test_bars_are_means_and_dots_are_runs(groups):
    (axes,) = draw_tasks(groups).axes
    many, _ = groups
    for bars, group in zip(axes.containers, groups, strict=True):
        widths = [bar.get_width() for bar in bars]
        np.testing.assert_allclose(widths, group.curve.success[-1].mean(axis=0))
    dots = np.stack([line.get_xdata() for line in axes.get_lines()])
    np.testing.assert_allclose(dots, many.curve.success[-1])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_bars_of_different_budgets_tell_them(make_run):
    def legend(groups):
        (found,) = draw_tasks(groups).legends
        return [text.get_text() for text in found.get_texts()]

    shorter = read_groups([str(make_run("shorter", [[0.5, 0.5]], (1000,)))])
    longer = read_groups([str(make_run("longer", [[0.5, 0.5]], (12_000,)))])
    told = ["shorter (1 run), 1,000 steps", "longer (1 run), 12,000 steps"]
    assert legend(shorter + longer) == told
    assert legend(shorter) == ["shorter (1 run)"]


def test_cells_are_the_means_of_their_evaluation(groups):
    figure = draw_heatmap(groups)
    for axes, group in zip(figure.axes, groups, strict=False):
        (mesh,) = axes.collections
        np.testing.assert_allclose(mesh.get_array(), group.curve.success.mean(axis=1).T)
        np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [0, *group.curve.steps])
        assert mesh.get_clim() == (0, 1)


def test_many_groups_can_be_told_apart(make_run, tmp_path):
    paths = [make_run(f"run{index}", [[0.5, 0.5]], (1000,)) for index in range(16)]
    lines = draw_curves(read_groups(map(str, paths)), "mean").axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 16
    bars = draw_tasks(read_groups(map(str, paths))).axes[0].containers
    assert len({(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in bars}) == 16


def test_panels_have_one_time_axis(make_run):
    shorter = make_run("shorter", [[0.5, 0.5]], (1000,))
    longer = make_run("longer", [[0.5, 0.5]], (3000,))
    panels = draw_heatmap(read_groups([str(shorter), str(longer)])).axes[:2]
    assert [panel.get_xlim() for panel in panels] == [(0, 3000), (0, 3000)]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["nowhere"], ["`RUN` nowhere does not exist"]),
        (["many_seed1", "--dpi", "0"], ["`--dpi` is 0"]),
        (["many_seed1", "--output", "many_seed1/metrics.jsonl"], ["`--output`", "may write to"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_ends_with_one_line(studies, plot, options, fragments):
    result = plot(*options)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert all(fragment in line for fragment in fragments)
    assert result.out == ""
