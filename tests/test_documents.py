"""What the documents say is what the project has."""

import importlib
import io
import re
import shlex
import shutil
import sys
from pathlib import Path

from conftest import GPT2_TINY, ROOT

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
    named |= {"setting.py", "sections.py", "config.py", "config_table.py"}
    named |= {"files.py", "__init__.py"}
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


def blocks(document):
    """The blocks of code of a document: their language and their content."""
    return re.findall(r"^```(\w*)\n(.*?)^```", document, re.DOTALL | re.MULTILINE)


def commands(document):
    """The command lines of a document that run our scripts, in order, each as its words."""
    lines = [line for _, block in blocks(document) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/python scripts/")]


def run(words):
    """Runs a command in this process; training is cut short and done on the play."""
    script = importlib.import_module(Path(words[0]).stem)
    words = [word.replace("--config=configs/", f"--config={ROOT}/configs/") for word in words]
    if words[0] == "scripts/train.py" and "--help_config" not in words:
        own = any("data.corpus" in word for word in words)
        given = any("init_from" in word for word in words)  # Weights have the model's shape.
        words += [word for word in SHORT if not (given and "config.model" in word)]
        words += [] if own else ["--config.data.corpus=builtin"]
    return script.main(words)


def test_every_command_of_the_readme_works(tmp_path, monkeypatch, capsys):
    """In the order of the README, in one folder, as a reader would; the Python code, too."""
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(play.write()[:30_000], encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("The king\n\n/quit\n"))
    shutil.copytree(GPT2_TINY, "gpt2")
    names = set()
    for words in commands(README):
        assert run(words) == 0, (words, capsys.readouterr().err)
        names.add(Path(words[0]).name)
    assert names == {
        *("train.py", "sample.py", "evaluate.py", "compare.py", "prepare.py", "export.py"),
    }
    assert {path.name for path in Path("runs").iterdir()} == {
        *("tiny", "mine", "bpe", "big", "long", "small", "gpt2"),
        *("play.txt", "compare.png", "exported"),
    }
    assert Path("runs/play.txt").stat().st_size > 2000
    [code] = [block for language, block in blocks(README) if language == "python"]
    exec(code, {})


def test_every_command_of_the_gpt2_page_works(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "gpt2.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(play.write()[:30_000], encoding="utf-8")
    shutil.copytree(GPT2_TINY, "gpt2")
    for words in commands(page):
        assert run(words) == 0, (words, capsys.readouterr().err)
    assert {path.name for path in Path("runs").iterdir()} == {"gpt2", "mine", "exported"}


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
