"""The loss curve is a picture of the numbers given."""

import matplotlib.figure
import pytest

from gpt_jax.report import draw_loss_curve

ENTRIES = [
    {"step": 10, "train/loss": 4.0},
    {"step": 20, "train/loss": None},
    {"step": 30, "train/loss": 2.0, "val/loss": 2.5},
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
    train, val, guess = figures[0].axes[0].lines
    assert list(train.get_xdata()) == [10, 30]
    assert list(val.get_ydata()) == [2.5]
    assert guess.get_ydata()[0] == pytest.approx(4.174, abs=1e-3)


def test_without_entries_there_is_still_a_picture(figures, tmp_path):
    draw_loss_curve([], 65, tmp_path / "loss.png")
    assert len(figures[0].axes[0].lines) == 1
