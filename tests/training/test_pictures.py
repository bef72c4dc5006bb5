"""The pictures show the numbers they are given, and the part of them that matters."""

import itertools
import math
import warnings

import matplotlib.figure
import pytest

from gpt_jax.config import Config
from gpt_jax.training.pictures import METRICS, draw_comparison, draw_loss_curve, draw_panels

CONFIG = Config().with_values("model", vocab_size=65)
ENTRIES = [
    {"step": 10, "train/loss": 4.0, "elapsed_s": 1.0},
    {"step": 20, "train/loss": None, "elapsed_s": 2.0},
    {"step": 30, "train/loss": 2.0, "val/loss": 2.5, "elapsed_s": 3.0},
    {"step": 40, "train/loss": 1.5, "val/loss": 2.7, "elapsed_s": 4.0},
]


def run(steps=1000, final=1.5, diverges_after=math.inf):
    """The log of a run whose losses fall from 4 to `final`."""
    losses = [final + 2.5 * math.exp(-step / 50) for step in range(10, steps + 1, 10)]
    entries = []
    for number, loss in enumerate(losses, start=1):
        loss = 9.0 if 10 * number > diverges_after else loss
        entries.append({"step": 10 * number, "train/loss": loss, "elapsed_s": 2.0 * number})
        if number % 10 == 0:
            entries[-1]["val/loss"] = loss + 0.1
    return entries


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    original = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **kwargs):
        saved.append(figure)
        return original(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return saved


def lines(axes, kind):
    """The curves of a kind in a picture."""
    return [line for line in axes.lines if line.get_label() == kind]


def words(figure):
    """All texts in a figure."""
    texts = [text.get_text() for place in (figure, *figure.axes) for text in place.texts]
    return texts + [axes.get_title("left") for axes in figure.axes]


def test_the_loss_curve_shows_the_entries_and_marks_the_best(figures, tmp_path):
    draw_loss_curve(ENTRIES, CONFIG, tmp_path / "loss.png", "tiny")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    [train], [val], [best] = (lines(axes, kind) for kind in ("training", "validation", "best"))
    assert list(train.get_xdata()) == [10, 30, 40]
    assert list(val.get_ydata()) == [2.5, 2.7]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (30, 2.5)
    assert "best 2.5000 at step 30" in words(figures[0])
    assert {"validation 2.7000", "training 1.5000"} <= set(words(figures[0]))
    assert train.get_linewidth() < val.get_linewidth()


def test_the_title_names_the_run_the_text_and_the_unit(figures, tmp_path):
    draw_loss_curve(ENTRIES, CONFIG, tmp_path / "loss.png", "tiny")
    title, caption = (text.get_text() for text in figures[0].texts)
    assert title == "tiny"
    assert caption.endswith("validation loss (thick) on Tiny Shakespeare")
    assert "nats per character" in words(figures[0])


def test_the_first_steps_do_not_set_the_range_and_are_named(figures, tmp_path):
    draw_loss_curve(run(), CONFIG, tmp_path / "loss.png", "tiny")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 1.5 and high < 2.2
    assert "\u2191 3.55 at step 10" in words(figures[0])
    assert not any("guessing" in text for text in words(figures[0]))


def test_a_long_training_curve_is_averaged(figures, tmp_path):
    draw_loss_curve(run(10_000), CONFIG, tmp_path / "loss.png", "tiny")
    [train] = lines(figures[0].axes[0], "training")
    assert 100 < len(train.get_xdata()) <= 150


def test_the_entropy_of_the_source_is_a_line_inside_the_range(figures, tmp_path):
    draw_loss_curve(ENTRIES, CONFIG, tmp_path / "loss.png", "tiny", 0.5)
    axes = figures[0].axes[0]
    assert any(set(line.get_ydata()) == {0.5} for line in axes.lines)
    assert "play's entropy 0.5000" in words(figures[0])
    assert axes.get_ylim()[0] < 0.5


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"step": 0, "train/loss": None, "val/loss": 3.3, "elapsed_s": 1.0}],
        [{"step": 5, "train/loss": math.nan, "val/loss": math.inf, "elapsed_s": 1.0}],
        [{"step": 5, "train/loss": 2.0, "elapsed_s": 1.0}],
        [{"step": step, "train/loss": 2.0, "elapsed_s": 1.0} for step in (5, 10)],
    ],
)
def test_logs_with_little_in_them_give_pictures(figures, tmp_path, entries):
    config = CONFIG.with_values("data", corpus="texts/東.txt")
    draw_loss_curve(entries, config, tmp_path / "loss.png", "$x^{" + "long" * 99)
    draw_comparison({"a": entries or ENTRIES, "b": ENTRIES}, tmp_path / "compare.png")
    assert len(figures) == 2


def test_a_comparison_shows_all_runs_against_steps_and_time(figures, tmp_path):
    other = [{"step": 5, "train/loss": 2.0, "val/loss": 2.2, "elapsed_s": 9.0}]
    draw_comparison({"a": ENTRIES, "b": other}, tmp_path / "compare.png", "nats per character")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    steps, seconds = figures[0].axes
    for axes, expected in ((steps, [[30, 40], [5]]), (seconds, [[3.0, 4.0], [9.0]])):
        assert [list(line.get_xdata()) for line in lines(axes, "validation")] == expected
        train_a, train_b = (line.get_color() for line in lines(axes, "training"))
        val_a, val_b = (line.get_color() for line in lines(axes, "validation"))
        assert train_a == val_a != train_b == val_b
    assert (steps.get_xlabel(), seconds.get_xlabel()) == ("training steps", "seconds of training")
    assert {"a", "b", "nats per character"} <= set(words(figures[0]))


def test_a_diverged_run_does_not_flatten_the_others(figures, tmp_path):
    runs = {"good": run(), "worse": run(final=1.8), "diverged": run(diverges_after=300)}
    draw_comparison(runs, tmp_path / "compare.png")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 1.5 and 1.9 < high < 4
    assert "diverged \u2191 9.1" in words(figures[0])


def test_many_runs_have_distinct_lines_and_labels_that_do_not_overlap(figures, tmp_path):
    runs = {f"runs/a-name-that-is-long-{n}": run(final=1.5 + n / 1000) for n in range(20)}
    draw_comparison(runs, tmp_path / "compare.png")
    left, right = figures[0].axes
    shown = lines(left, "validation")
    assert len({(line.get_color(), line.get_linestyle()) for line in shown}) == 20
    assert lines(left, "training") == []
    heights = sorted(text.get_position()[1] for text in right.texts if "..." in text.get_text())
    assert len(heights) == 20
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert min(gaps) > 0.04 and heights[0] >= 0 and heights[-1] <= 1


@pytest.mark.parametrize(
    "entries",
    [
        ENTRIES,
        [{"step": 5, "train/loss": 3e38, "elapsed_s": 1e10}],
        [{"step": 5, "train/loss": 2.0, "elapsed_s": None}, {"step": 6, "train/loss": 2.0}],
    ],
)
def test_drawing_warns_of_nothing(tmp_path, entries):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_loss_curve(entries, CONFIG, tmp_path / "loss.png", "東京")
        draw_comparison({"東京": entries}, tmp_path / "compare.png")


TUNED = [
    {"step": 0, "train/loss": None, "val/reward": 0.1, "val/corpus_loss": 1.0},
    {"step": 1, "train/loss": 0.5, "reward": 0.2, "kl": 0.0},
    {"step": 2, "train/loss": 0.4, "reward": 0.4, "kl": 0.1}
    | {"val/reward": 0.5, "val/corpus_loss": 1.2},
]
PANELS = (("reward", "val/reward"), ("kl",), ("val/corpus_loss",))


def test_panels_show_what_was_optimised_and_what_was_not(figures, tmp_path):
    draw_panels(TUNED, PANELS, tmp_path / "loss.png", "play-reward")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    [figure] = figures
    shown = [
        {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
        for axes in figure.axes
    ]
    assert shown == [
        {METRICS["reward"]: [(1, 0.2), (2, 0.4)], METRICS["val/reward"]: [(0, 0.1), (2, 0.5)]},
        {METRICS["kl"]: [(1, 0.0), (2, 0.1)]},
        {METRICS["val/corpus_loss"]: [(0, 1.0), (2, 1.2)]},
    ]
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["optimised", "not optimised", "not optimised"]
    assert "play-reward" in words(figure)
    for axes, keys in zip(figure.axes, PANELS, strict=True):
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == [METRICS[key] for key in keys]
        assert len({line.get_color() for line in axes.lines}) == len(keys)


def test_a_panel_without_figures_is_left_out(figures, tmp_path):
    entries = [{k: v for k, v in entry.items() if "corpus" not in k} for entry in TUNED]
    draw_panels(entries, PANELS, tmp_path / "loss.png", "a")
    assert len(figures[0].axes) == 2


def test_long_panels_are_averaged(figures, tmp_path):
    entries = [{"step": step, "reward": 1.0, "kl": 0.1} for step in range(1, 10_001)]
    draw_panels(entries, PANELS, tmp_path / "loss.png", "a")
    assert all(
        100 < len(line.get_xdata()) <= 150 for axes in figures[0].axes for line in axes.lines
    )


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"step": 0, "train/loss": None}],
        [{"step": 1, "reward": None, "kl": math.nan}],
        [{"step": 1, "reward": 3e38, "kl": 0.0}],
    ],
)
def test_a_tuned_log_with_little_in_it_gives_a_picture_without_warnings(tmp_path, entries):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_panels(entries, PANELS, tmp_path / "loss.png", "$x^{ \u6771" + "long" * 99)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
