"""What the documents say is what the project has."""

import importlib
import io
import re
import shlex
import sys
from pathlib import Path

from conftest import ROOT

from gpt_jax import play

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for folder in (".", "docs") for path in (ROOT / folder).glob("*.md")
)
SHORT = [
    "--config.model.block_size=16",
    "--config.model.n_layer=1",
    "--config.model.n_head=2",
    "--config.model.n_embd=16",
    "--config.train.steps=2",
    "--config.train.batch_size=64",
    "--config.optimizer.warmup_steps=1",
    "--config.mesh.cpu_devices=1",
    "--config.sample.max_new_tokens=5",
]


def test_ci_runs_the_test_command_of_the_readme():
    block = README.split("## Test")[1].split("```")[1]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace('"$work/.venv/bin/', '"')
    for command in block.strip().splitlines()[1:]:
        program, _, arguments = command.removeprefix(".venv/bin/").partition(" ")
        assert re.search(rf'"{program}".* {re.escape(arguments)}', script), command


def test_the_picture_of_the_readme_names_every_module_and_script():
    picture = README.split("## How it is built")[1].split("```")[1]
    named = set(re.findall(r"(\w+\.py)", picture))
    named |= {"config.py", "config_table.py", "files.py", "__init__.py"}
    files = [*(ROOT / "gpt_jax").glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    assert named == {path.name for path in files}


def test_files_the_documents_name_exist():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"\b((?:gpt_jax|configs|scripts|tests|docs)/\w+\.(?:py|md))", text):
            assert (ROOT / name).exists(), f"{document} names {name}"


def test_no_document_holds_a_placeholder():
    for path in [*(ROOT / name for name in DOCUMENTS), *(ROOT / "configs").glob("*.py")]:
        assert not re.search(r"@[A-Z]+@|TODO|XXX", path.read_text(encoding="utf-8")), path


def blocks():
    """The blocks of code of the README: their language and their content."""
    return re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands():
    """The command lines of the README that run our scripts, in order, each as its words."""
    lines = [line for _, block in blocks() for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/python scripts/")]


def run(words):
    """Runs a command in this process; training is cut short and done on the play."""
    script = importlib.import_module(Path(words[0]).stem)
    words = [word.replace("--config=configs/", f"--config={ROOT}/configs/") for word in words]
    if words[0] == "scripts/train.py" and "--help_config" not in words:
        own = any("data.corpus" in word for word in words)
        words += [*SHORT, *([] if own else ["--config.data.corpus=builtin"])]
    return script.main(words)


def test_every_command_of_the_readme_works(tmp_path, monkeypatch, capsys):
    """In the order of the README, in one folder, as a reader would; the Python code, too."""
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(play.write()[:30_000], encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("The king\n\n/quit\n"))
    names = set()
    for words in commands():
        assert run(words) == 0, (words, capsys.readouterr().err)
        names.add(Path(words[0]).name)
    assert names == {"train.py", "sample.py", "evaluate.py", "compare.py", "prepare.py"}
    assert {path.name for path in Path("runs").iterdir()} == {
        *("tiny", "mine", "bpe", "big", "long", "small"),
        *("play.txt", "compare.png"),
    }
    assert Path("runs/play.txt").stat().st_size > 2000
    [code] = [block for language, block in blocks() if language == "python"]
    exec(code, {})


def test_the_places_the_tutorial_page_names_exist():
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (\d+) ", page, re.MULTILINE) == [str(n) for n in range(1, 18)]
    names = re.findall(r"`(\w+)\.([\w.]+)`", page)
    assert len(names) > 15
    for module, name in names:
        if name != "py":
            found = importlib.import_module(f"gpt_jax.{module}")
            for part in name.split("."):
                found = getattr(found, part)


def test_the_tests_the_reliability_page_names_exist():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    names = re.findall(r"`(test_\w+)`", page)
    assert len(names) > 20
    for name in names:
        assert f"def {name}(" in source, name
