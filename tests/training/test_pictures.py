"""The pictures show the numbers given."""

import matplotlib.figure
import pytest

from gpt_jax.training.pictures import best, draw_comparison, draw_loss_curve

ENTRIES = [
    {"step": 10, "train/loss": 4.0, "elapsed_s": 1.0},
    {"step": 20, "train/loss": None, "elapsed_s": 2.0},
    {"step": 30, "train/loss": 2.0, "val/loss": 2.5, "elapsed_s": 3.0},
    {"step": 40, "train/loss": 1.5, "val/loss": 2.7, "elapsed_s": 4.0},
]


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


def test_curves_show_the_entries_and_the_loss_of_guessing(figures, tmp_path):
    draw_loss_curve(ENTRIES, 65, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    train, val, best, guess = figures[0].axes[0].lines
    assert list(train.get_xdata()) == [10, 30, 40]
    assert list(val.get_ydata()) == [2.5, 2.7]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (30, 2.5)
    assert best.get_label() == "best: 2.5000 at step 30"
    assert guess.get_ydata()[0] == pytest.approx(4.174, abs=1e-3)


def test_the_loss_of_the_source_is_a_line(figures, tmp_path):
    draw_loss_curve(ENTRIES, 65, tmp_path / "loss.png", source_loss=0.5)
    line = figures[0].axes[0].lines[-1]
    assert set(line.get_ydata()) == {0.5}
    assert "0.5000" in line.get_label()


def test_without_entries_there_is_still_a_picture(figures, tmp_path):
    draw_loss_curve([], 65, tmp_path / "loss.png")
    assert len(figures[0].axes[0].lines) == 1


def test_a_comparison_has_all_runs_against_steps_and_against_seconds(figures, tmp_path):
    other = [{"step": 5, "train/loss": 1.0, "val/loss": 1.5, "elapsed_s": 9.0}]
    draw_comparison({"a": ENTRIES, "b": other}, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    steps, seconds = figures[0].axes
    for axes, (x_of_a, x_of_b) in ((steps, ([30, 40], [5])), (seconds, ([3.0, 4.0], [9.0]))):
        held_out = {line.get_label(): list(line.get_xdata()) for line in axes.lines[1::2]}
        assert held_out == {"a": x_of_a, "b": x_of_b}
        train_a, val_a, train_b, val_b = axes.lines
        assert train_a.get_color() == val_a.get_color() != train_b.get_color() == val_b.get_color()
    assert (steps.get_xlabel(), seconds.get_xlabel()) == ("step", "seconds")


def test_the_best_is_the_smallest_held_out_loss():
    assert best(ENTRIES) == (30, 2.5)
    assert best(ENTRIES[:2]) is None
