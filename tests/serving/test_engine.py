"""Texts of many clients: shared devices, a queue, cancellation, faults."""

import threading

import jax
import pytest

from gpt_jax.sampling import encode_prompt
from gpt_jax.serving.engine import Engine, Job, QueueFull
from gpt_jax.serving.slots import Slots

PATIENCE_S = 120  # Until a test fails.


class Text:
    """A job that collects its ids."""

    def __init__(self, model, seed=0, most=40, prompt="The ", block=None, **options):
        self.ids, self.most, self.reason = [], most, None
        self.begun, self.ended = threading.Event(), threading.Event()
        self._block = block
        config = model.sample_config("", **options)
        ids = encode_prompt(model.tokenizer, prompt)
        self.job = Job(ids, config, seed, 0, most, False, self._take, self._fail)

    def _take(self, ids, scores):
        self.begun.set()
        if self._block:
            self._block.wait(PATIENCE_S)
        self.ids += ids.tolist()
        if len(self.ids) < self.most:
            return True
        self.ended.set()
        return False

    def _fail(self, reason):
        self.reason = reason
        self.ended.set()

    def text(self, model):
        assert self.ended.wait(PATIENCE_S) and self.reason is None
        return model.tokenizer.decode(self.ids[: self.most])


@pytest.fixture
def make(model):
    """Makes engines of the plain run, which end with the test."""
    engines = []

    def call(slots=2, queue=64):
        engines.append(Engine(model, slots, queue))
        return engines[-1]

    yield call
    for engine in engines:
        engine.close(PATIENCE_S)
        assert not any(thread.is_alive() for thread in engine._threads)


def submit(engine, *texts):
    engine.submit([text.job for text in texts])


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_text_depends_on_nothing_but_itself(make, model, slots):
    """Nine texts over one to three devices, which have a slot each."""
    engine = make(slots)
    texts = [
        Text(model, seed=i, temperature=0.5 + i / 10, prompt="The king"[: 1 + i]) for i in range(9)
    ]
    submit(engine, *texts)
    for i, text in enumerate(texts):
        whole = model.generate(
            "The king"[: 1 + i], seed=i, temperature=0.5 + i / 10, max_new_tokens=40
        )
        assert "The king"[: 1 + i] + text.text(model) == whole


def test_the_devices_share_the_texts(make, model):
    engine, block = make(slots=4), threading.Event()
    texts = [Text(model, block=block) for _ in range(4)]
    submit(engine, *texts)
    for text in texts:
        assert text.begun.wait(PATIENCE_S)  # Four workers draw at the same time.
    assert len(engine._threads) == 4
    block.set()
    assert len({text.text(model) for text in texts}) == 1


def test_a_full_queue_takes_all_texts_of_a_request_or_none(make, model):
    engine, block = make(slots=1, queue=2), threading.Event()
    first = Text(model, block=block)
    submit(engine, first)
    assert first.begun.wait(PATIENCE_S)
    waiting = Text(model)
    submit(engine, waiting)
    with pytest.raises(QueueFull):
        submit(engine, Text(model), Text(model))
    last = Text(model)
    submit(engine, last)
    with pytest.raises(QueueFull):
        submit(engine, Text(model))
    block.set()
    assert first.text(model) == waiting.text(model) == last.text(model)


def test_a_cancelled_text_frees_its_slot(make, model):
    engine = make(slots=1)
    endless, waiting, next_ = Text(model, most=10**9), Text(model, most=10**9), Text(model)
    submit(engine, endless, waiting, next_)
    assert endless.begun.wait(PATIENCE_S)
    engine.cancel([endless.job, waiting.job])
    assert next_.text(model)
    assert not waiting.ids
    drawn = len(endless.ids)
    submit(engine, again := Text(model))
    assert again.text(model) and len(endless.ids) == drawn
    engine.cancel([next_.job])  # Has ended: nothing happens.


def test_a_fault_ends_its_texts_and_not_the_worker(make, model, monkeypatch, capsys):
    engine, draw = make(slots=1), Slots.draw
    monkeypatch.setattr(Slots, "draw", lambda *_: 1 / 0)
    submit(engine, broken := Text(model))
    assert broken.ended.wait(PATIENCE_S)
    assert "division by zero" in broken.reason
    monkeypatch.setattr(Slots, "draw", draw)
    submit(engine, good := Text(model))
    assert good.text(model)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_closed_engine_finishes_its_texts(make, model):
    engine = make(slots=1)
    texts = [Text(model) for _ in range(3)]
    submit(engine, *texts)
    engine.close(PATIENCE_S)
    assert len({text.text(model) for text in texts}) == 1
    assert engine.is_idle


def noted_pieces(monkeypatch, seconds):
    """The tokens of each piece that is drawn, and the valid ones; a token takes so many seconds."""
    pieces, draw, clock = [], Slots.draw, [0.0]

    def noted(slots, count, scored):
        drawn = draw(slots, count, scored)
        valid = max(len(ids) for ids, _ in drawn.values())
        pieces.append((count, valid))
        clock[0] += seconds * valid
        return drawn

    monkeypatch.setattr(Slots, "draw", noted)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    return pieces


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 1), (0.012, 4), (1e-6, 64)])
def test_a_slow_model_draws_shorter_pieces(make, model, monkeypatch, seconds, expected):
    """As many tokens as take 50 ms, and at most 64; the first piece is a single token."""
    pieces = noted_pieces(monkeypatch, seconds)
    submit(make(slots=1), text := Text(model, most=100))
    text.text(model)
    assert pieces[0] == (1, 1)
    assert max(count for count, _ in pieces[1:]) == expected
    assert pieces[-1][0] == pieces[-1][1]  # No token beyond the text.


def test_a_piece_ends_with_the_text_that_ends_first(make, model, monkeypatch):
    """Unless that is soon: its row is then idle until the piece ends."""
    monkeypatch.setattr("jax.local_devices", lambda: jax.devices()[:1])
    pieces = noted_pieces(monkeypatch, 1e-6)
    ended = Text(model, most=10, prompt="a"), Text(model, most=100, prompt="a")
    submit(make(slots=2), *ended)
    assert [len(text.text(model)) for text in ended] == [10, 100]
    assert [count for count, _ in pieces[:2]] == [1, 9]
