"""What the documents say is what the project has."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme():
    block = README.split("## Test")[1].split("```")[1]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace('"$work/.venv/bin/', '"')
    for command in block.strip().splitlines()[1:]:
        program, _, arguments = command.removeprefix(".venv/bin/").partition(" ")
        assert re.search(rf'"{program}".* {re.escape(arguments)}', script), command


def test_the_picture_of_the_readme_names_every_module_and_script():
    picture = README.split("## How it is built")[1].split("```")[1]
    named = set(re.findall(r"(\w+\.py)", picture)) | {"config.py", "__init__.py"}
    modules = {path.name for path in (ROOT / "gpt_jax").glob("*.py")}
    scripts = {path.name for path in (ROOT / "scripts").glob("*.py")} - {"command_line.py"}
    assert named == modules | scripts


def test_files_the_documents_name_exist():
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in re.findall(r"\b((?:gpt_jax|configs|scripts|tests)/\w+\.py)", text):
            assert (ROOT / name).exists(), f"{document} names {name}"


def test_no_document_holds_a_placeholder():
    for path in [*ROOT.glob("*.md"), *(ROOT / "configs").glob("*.py")]:
        assert not re.search(r"@[A-Z]+@|TODO|XXX", path.read_text(encoding="utf-8")), path
