"""The flags for several processes are checked before anything heavy is loaded."""

import re

import pytest
import train

from gpt_jax.config.cluster import Cluster

THREE = ["--coordinator=localhost:8476", "--num_processes=2", "--process_id=1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (THREE, "--coordinator is for several processes: give --distributed"),
        (["--process_id=0"], "--process_id is for several processes: give --distributed"),
        (["--distributed", *THREE[:2]], "belong together: give all three, or none"),
        (["--distributed", *THREE[1:]], "belong together: give all three, or none"),
        (["--distributed", *THREE, "--process_id=2"], "=2 is out of range: 2 .* 0 to 1"),
        (["--distributed", *THREE, "--process_id=-1"], "--process_id=-1 is out of range"),
        (["--distributed", *THREE, "--num_processes=0"], "--num_processes=0 is too few"),
        (["--distributed", *THREE, "--coordinator=localhost"], "=localhost is not HOST:PORT"),
        (["--distributed", *THREE, "--coordinator=:80"], "=:80 is not HOST:PORT"),
        (["--distributed", *THREE, "--coordinator=a:99999"], "=a:99999 is not HOST:PORT"),
        (["--distributed", "--coordinator_bind=0.0.0.0"], "needs --coordinator"),
        (["--distributed", *THREE, "--join_timeout=0"], "--join_timeout=0 is too short"),
        (["--distributed", "--num_processes=two"], "num_processes"),
    ],
)
def test_bad_flags_give_one_sentence(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "train", None)
    monkeypatch.setattr(train, "meet", None)
    assert train.main(["train.py", *flags, f"--workdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(words, err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("coordinator", "bind", "address"),
    [
        ("localhost:8476", "", "localhost:8476"),
        ("127.0.0.1:80", "", "127.0.0.1:80"),
        ("[::1]:80", "", "[::1]:80"),
        ("node7:80", "0.0.0.0", "0.0.0.0:80"),
    ],
)
def test_process_0_listens_only_at_the_requested_address(coordinator, bind, address):
    cluster = Cluster(coordinator, 2, 0, bind)
    assert cluster.bind_address == address
