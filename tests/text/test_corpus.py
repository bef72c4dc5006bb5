"""Sources of text: files, folders, globs, the play, and a download from a local server."""

import functools
import hashlib
import http.server
import os
import threading

import pytest

from gpt_jax import files
from gpt_jax.config.sections import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.runs import Record, same_tokens, write_record
from gpt_jax.text import corpus, play
from gpt_jax.text.tokenizer import CharTokenizer
from gpt_jax.text.tokens import new_tokens

CONTENT = b"First Citizen:\nThis stands for Tiny Shakespeare.\n"


def test_the_play_is_a_corpus():
    loaded = corpus.load_corpus("builtin")
    assert loaded.source == "builtin"
    assert loaded.text == play.write()
    assert loaded.sha256 == hashlib.sha256(loaded.text.encode()).hexdigest()


def test_a_file_keeps_its_line_endings_and_loses_its_byte_order_mark(tmp_path):
    path = tmp_path / "with space.txt"
    path.write_bytes(b"\xef\xbb\xbf\xc3\x84rger\r\n\xe6\x9d\xb1")
    loaded = corpus.load_corpus(str(path))
    assert loaded.text == "Ärger\r\n東"
    assert loaded.source == str(path)


def test_a_relative_path_is_recorded_as_absolute(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert corpus.load_corpus("a.txt").source == str(tmp_path / "a.txt")


def test_a_folder_and_a_glob_are_read_in_the_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in (("b.txt", "B"), ("a.txt", "A"), ("sub/c.txt", "C"), ("d.md", "D")):
        (tmp_path / name).write_text(text)
    assert corpus.load_corpus(str(tmp_path)).text == "A\nB\nC"
    assert corpus.load_corpus(str(tmp_path / "*.*")).text == "A\nB\nD"
    assert corpus.load_corpus(str(tmp_path / "**" / "*.txt")).text == "A\nB\nC"


LEFT_OUT = [
    *(".hidden.txt", ".ipynb_checkpoints/my-checkpoint.txt", "sub/.git/deep/er.txt"),
    *("__pycache__/a.txt", "sub/node_modules/module/license.txt", "__MACOSX/a.txt"),
    *("venv/lib/site-packages/x/LICENSE.txt", "$RECYCLE.BIN/a.txt", "my.egg-info/SOURCES.txt"),
]


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_folder_leaves_out_hidden_and_system_files_and_folders(name, tmp_path, capsys):
    write(tmp_path, "a.txt", "sub/b.txt", name)
    assert corpus.load_corpus(str(tmp_path)).text == "a.txt\nsub/b.txt"
    expected = rf"note: {tmp_path}: 2 .txt file(s) taken, 1 left out (hidden, "
    assert capsys.readouterr().err.startswith(expected)


def test_a_folder_that_is_named_is_read_even_if_its_own_name_is_hidden(tmp_path):
    write(tmp_path, ".texts/node_modules/a.txt", ".texts/node_modules/.b.txt")
    assert corpus.load_corpus(str(tmp_path / ".texts" / "node_modules")).text.endswith("a.txt")


@pytest.mark.parametrize("workdir", ["runs/tiny", "."])
def test_a_folder_leaves_out_what_a_run_wrote_into_it(workdir, small, tmp_path, capsys):
    write(tmp_path, "a.txt", "samples/mine.txt" if workdir != "." else "other/mine.txt")
    before = corpus.load_corpus(str(tmp_path))
    run = tmp_path / workdir
    small = small.with_values("model", matmul_dtype="float32", vocab_size=65)
    write_record(run, Record(small, "a.txt", "ab", "cpu", 1), CharTokenizer("ab"))
    write(run, "samples/80.txt", "checkpoints/80/commit_success.txt")
    write(run, "checkpoints/damaged-60/state/commit_success.txt")
    capsys.readouterr()
    assert corpus.load_corpus(str(tmp_path)) == before
    assert "2 .txt file(s) taken, 3 left out" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["{}", "[]", "{", '{"format": 1}', "[" * 100_000])
def test_samples_beside_a_config_of_another_program_are_text(config, tmp_path):
    write(tmp_path, "samples/a.txt")
    (tmp_path / "config.json").write_text(config)
    assert corpus.load_corpus(str(tmp_path)).text == "samples/a.txt"


def test_a_folder_without_a_file_to_take_says_how_many_it_leaves_out(tmp_path, capsys):
    write(tmp_path, ".a.txt", ".b.txt")
    with pytest.raises(UserError, match="matches no text file"):
        corpus.load_corpus(str(tmp_path))
    assert "0 .txt file(s) taken, 2 left out" in capsys.readouterr().err


def test_a_glob_takes_what_it_names_and_no_hidden_files_and_prints_no_note(tmp_path, capsys):
    write(tmp_path, "a.txt", ".b.txt", ".c/d.txt", "node_modules/e.txt")
    found = corpus.load_corpus(str(tmp_path / "**" / "*.txt")).text
    assert found == "a.txt\nnode_modules/e.txt"
    assert corpus.load_corpus(str(tmp_path / ".c" / "*.txt")).text == ".c/d.txt"
    assert capsys.readouterr().err == ""


FILES = ", ".join([*corpus.NAMES, "an existing file"])
FOLDER = "a folder with"


@pytest.mark.parametrize(
    ("source", "wanted"), [("nothing.txt", FILES), ("*.txt", FILES), (".", FOLDER)]
)
def test_a_source_without_text_files_is_named(source, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"data\.corpus = .* matches no text file .*: give {wanted}"
    ):
        corpus.load_corpus(source)


@pytest.mark.parametrize("source", ["-", "/dev/stdin", "/dev/fd/63", "/proc/self/fd/0", "pipe"])
def test_a_text_that_cannot_be_read_again_is_refused(source, tmp_path, monkeypatch, mkfifo):
    monkeypatch.chdir(tmp_path)
    mkfifo("pipe")
    with pytest.raises(UserError, match=rf"data\.corpus = '{source}' is .*: save the text in a"):
        corpus.load_corpus(source)
    (tmp_path / "-").write_text("text")
    assert corpus.load_corpus("./-").text == "text"


@pytest.mark.parametrize("form", ["{}", "{}/*", "{}/pipe*"])
def test_a_folder_and_a_glob_leave_out_what_is_no_file(form, tmp_path, mkfifo):
    mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    with pytest.raises(UserError, match="matches no text file"):
        corpus.load_corpus(form.format(tmp_path))


@pytest.mark.parametrize("read", [corpus.load_corpus, corpus.absolute_source])
def test_a_home_folder_that_is_not_known_is_named(read):
    with pytest.raises(
        UserError, match=r"~nobody-here/a\.txt begins with a home folder that is not"
    ):
        read("~nobody-here/a.txt")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        corpus.load_corpus(str(tmp_path / "a.txt"))


class Server(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of `answers`: a status, a body and perhaps a function.

    If there is a function, the answer promises a longer body, and the function is called after it.
    """

    def __init__(self, answers, *args):
        self.answers = answers
        super().__init__(*args)

    def do_GET(self):
        status, body, *more = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + len(more)))
        self.end_headers()
        self.wfile.write(body)
        if more:
            self.wfile.flush()
            more[0]()

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Serves Tiny Shakespeare from a local server, without pauses between attempts."""
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_BYTES", len(CONTENT))
    monkeypatch.setattr(corpus.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(answers):
        handler = functools.partial(Server, answers)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/input.txt"
        monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_URL", url)
        return answers

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_download_is_cached_and_not_repeated(serve):
    left = serve([(200, CONTENT), (500, b"")])
    for _ in range(2):
        assert corpus.load_corpus("tinyshakespeare").text == CONTENT.decode()
    assert len(left) == 1
    assert [path.name for path in files.cache_folder().iterdir()] == ["tinyshakespeare.txt"]


@pytest.mark.parametrize("bad", [(500, b""), (200, b"something else"), (200, CONTENT[:-1])])
def test_a_failed_download_is_tried_again(serve, bad):
    serve([bad, bad, (200, CONTENT)])
    assert corpus.load_corpus("tinyshakespeare").text == CONTENT.decode()


@pytest.fixture
def stall(monkeypatch):
    """Holds a connection until the test ends; the timeout is short."""
    monkeypatch.setattr(corpus, "TIMEOUT_SECONDS", 0.1)
    over = threading.Event()
    yield over.wait
    over.set()


def test_a_download_that_stalls_or_breaks_is_tried_again(serve, stall):
    serve([(200, CONTENT[:9], stall), (200, CONTENT[:9], lambda: None), (200, CONTENT)])
    assert corpus.load_corpus("tinyshakespeare").text == CONTENT.decode()
    assert [path.name for path in files.cache_folder().iterdir()] == ["tinyshakespeare.txt"]


def test_a_new_run_uses_the_play_if_the_download_fails_and_caches_nothing(serve, stall, capsys):
    bad = [(200, CONTENT[:9], stall), (200, CONTENT[:9], lambda: None), (200, b"something else")]
    left = serve([*bad, *bad])
    tokens = new_tokens(DataConfig(corpus="tinyshakespeare"))
    assert (tokens.source, tokens.tokenizer.decode(tokens.ids)) == ("builtin", play.write())
    assert capsys.readouterr().err.count("this run uses the built-in play") == 1
    assert not files.cache_folder().exists()
    assert len(left) == 3


def test_a_run_that_resumes_does_not_replace_its_text_if_the_download_fails(serve, small, tmp_path):
    serve([(200, b"something else")] * 3)
    config = small.with_values("data", corpus="tinyshakespeare")
    record = Record(config, "tinyshakespeare", "ab", "cpu", 1)
    with pytest.raises(corpus.DownloadError, match="cannot be downloaded"):
        same_tokens(config, record, tmp_path)
    assert not files.cache_folder().exists()


def test_three_failed_downloads_give_one_error_and_no_cache(serve):
    left = serve([(404, b"")] * 4)
    with pytest.raises(corpus.DownloadError, match=r"cannot be downloaded.*corpus=builtin"):
        corpus.load_corpus("tinyshakespeare")
    assert len(left) == 1
    assert not files.cache_folder().exists()


@pytest.mark.parametrize("place", ["a file", "a loop", "no home"])
def test_a_download_that_cannot_be_cached_is_used_with_a_note(serve, place, monkeypatch, capsys):
    serve([(200, CONTENT)])
    if place == "a file":
        files.cache_folder().write_text("a file")
    elif place == "a loop":
        files.cache_folder().symlink_to(files.cache_folder())
    else:
        monkeypatch.delenv("GPT_JAX_CACHE")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert corpus.load_corpus("tinyshakespeare").text == CONTENT.decode()
    assert "note: the download is not cached (" in capsys.readouterr().err


def test_a_corrupt_cache_is_downloaded_again(serve):
    serve([(200, CONTENT)])
    path = files.cache_folder() / "tinyshakespeare.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:10])
    assert corpus.load_corpus("tinyshakespeare").text == CONTENT.decode()
    assert path.read_bytes() == CONTENT
