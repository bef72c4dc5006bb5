"""What the documents say is true: their commands run, and what they name exists."""

import importlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from support import GPT2_TINY, ROOT
from test_layering import HOUSE

from gpt_jax.config import SECTIONS, Config
from gpt_jax.text import play

PAGES = sorted(path for folder in (".", "docs") for path in (ROOT / folder).glob("*.md"))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
TEXTS["docs/tour.ipynb"] = "\n\n".join(
    "".join(cell["source"])
    for cell in json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "markdown"
)
README = TEXTS["README.md"]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
MODULES = sorted(path for path in (ROOT / "gpt_jax").rglob("*.py") if path.stem != "__init__")

TRAIN = "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python scripts/train.py --config=configs/tiny.py"  # noqa: E501
TEST = 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/pytest -n auto'

# What no user needs every day, and the parts of other scripts.
NOT_IN_TABLE = (
    "benchmark",
    "load",
    "soak",
    "power_cut",
    "campaign",
    "pairs",
    "command_line",
    "early_exit",
    "flag_errors",
    "interactive",
)

SHORT = [
    "--config.model.block_size=16",
    "--config.model.n_layer=1",
    "--config.model.n_head=2",
    "--config.model.n_embd=16",
    "--config.train.batch_size=64",
    "--config.optimizer.warmup_steps=1",
    "--config.train.sample_tokens=0",
    "--config.optimizer.schedule=constant",  # Else another number of steps is compiled anew.
    "--config.mesh.cpu_devices=1",
]
SHORT_PROGRAM = ('{"steps": 200}', '{"steps": 2}, "optimizer": {"warmup_steps": 1}')
# These need minutes, a GPU or other processes, or another test runs them: only their flags are
# checked.
NOT_RUN = (
    *("serve.py", "load.py", "soak.py", "power_cut.py", "campaign.py", "benchmark.py", "baby.py"),
    *("--distributed", "--wandb"),
    *("gpt2.py:small --config.train",),
    *("play.py", "instruct.py", "prefer.py", "reward.py", "runs/play-instruct"),
    *("runs/short", "alpaca.jsonl", "runs/gpt2 --instruction"),
    *("--config.model.attention=cudnn", "--config.model.remat"),
    *("--config.optimizer.matrix_learning_rate", "--config.data.val_fraction"),
    *("runs/speedrun0", "train90.txt"),
)


def blocks(text):
    """The code blocks of a page: their language and their content."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def commands(code):
    """The commands of a code block that run our scripts, each as its words."""
    last_parts = [line.split(" && ")[-1] for line in code.splitlines()]
    return [
        shlex.split(line)[1:] for line in last_parts if line.startswith(".venv/bin/python scripts/")
    ]


def table_commands(text):
    """The commands in the README's table "I want to ...", each as its words."""
    table = text.split("## I want to ...")[1].split("##")[0]
    return [shlex.split(words) for words in re.findall(r"`((?:scripts/|-c ).*?)` \|", table)]


def shortened(words):
    """A training command that takes a second or two: a small model, few steps, little text."""
    told = " ".join(words)
    if "--help_config" in told or ("--plan" in told and "mesh.data" in told):
        return words  # Nothing is compiled.
    short = [
        word
        for word in SHORT
        if not ("init_from" in told and "config.model" in word)  # The weights have their shape.
        and not ("config.mesh" in told and "config.mesh" in word)
    ]
    if "train.steps=0" not in told:
        short.append(f"--config.train.steps={4 if 'resume_allow' in told else 2}")
    if "data.corpus" not in told:
        short.append("--config.data.corpus=my.txt")
    if "sample.max_new_tokens" not in told:
        short.append(
            f"--config.sample.max_new_tokens={5 if told.endswith(('tiny.py', 'sums.py')) else 0}"
        )
    return [*words, *short]


def run(words):
    """Runs a command in this process. Returns its exit status."""
    if words[0] == "-c":
        exec(words[1], {})
        return 0
    script = importlib.import_module(Path(words[0]).stem)
    words = [word.replace("--config=configs/", f"--config={ROOT}/configs/") for word in words]
    if any(sign in " ".join(words) for sign in NOT_RUN):
        words = [*words, "--help"]
    elif words[0] == "scripts/train.py":
        words = shortened(words)
    return script.main(words)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a text, a larger one, GPT-2's weights, and somebody who types."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("The king\n\n/quit\n"))
    text = play.write()
    names = ("my.txt", "big.txt", "train90.txt", "tinyshakespeare.txt")
    for name in names:  # The same vocabulary compiles nothing anew.
        Path(name).write_text(text[:30_000] + "".join(sorted(set(text))), encoding="utf-8")
    shutil.copytree(GPT2_TINY, "gpt2")
    return tmp_path


def test_every_command_of_the_readme_works(folder, capsys):
    """In the order of the README, as a reader would give them."""
    used = set()
    in_blocks = [words for _, code in blocks(README) for words in commands(code)]
    for words in [*in_blocks, *table_commands(README)]:
        assert run(words) == 0, (words, capsys.readouterr().err)
        used.add(Path(words[0]).name)
    assert used - {"-c"} == {f"{name}.py" for name in SCRIPTS if name not in NOT_IN_TABLE}
    made = {path.name for path in Path("runs").iterdir()}
    assert {"tiny", "mine", "speedrun", "gpt2", "exported"} <= made


@pytest.mark.parametrize("page", sorted(set(TEXTS) - {"README.md", "CONTRIBUTING.md"}))
def test_every_command_and_every_program_of_a_page_works(page, folder, trained, capsys):
    if page in ("docs/evaluating.md", "docs/sampling.md"):  # The others train first.
        for name in ("tiny", "mine"):
            shutil.copytree(trained, Path("runs", name))
    for language, code in blocks(TEXTS[page]):
        for words in commands(code):
            assert run(words) == 0, (words, capsys.readouterr().err)
        if language == "python" and (
            "transformers" not in code or importlib.util.find_spec("transformers")
        ):
            exec(code.replace(*SHORT_PROGRAM), {"__name__": "__main__"})


def test_the_first_screen_has_the_two_commands_and_the_readme_is_short():
    assert [code.strip() for _, code in blocks(README)][:2] == [TRAIN, TEST]
    assert len(README.splitlines()) <= 160


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace('"$work/.venv/bin/', '"')
    for command in TEST.split(" && ")[1:]:
        program, _, arguments = command.removeprefix(".venv/bin/").partition(" ")
        assert re.search(rf'"{program}".* {re.escape(arguments)}', script), command


def test_the_picture_of_the_readme_names_every_package_and_script():
    picture = README.split("## The house")[1].split("```")[1]
    packages = [path.parent.name for path in (ROOT / "gpt_jax").glob("*/__init__.py")]
    files = [path.name for path in (ROOT / "gpt_jax").glob("[!_]*.py")]
    assert set(re.findall(r"(\w+\.py)", picture)) == {*files, *(f"{name}.py" for name in SCRIPTS)}
    assert set(re.findall(r"^  (\w+)/", picture, re.MULTILINE)) == set(packages)


def test_the_architecture_page_lists_every_module_in_the_order_of_imports():
    page = TEXTS["docs/architecture.md"]
    listed = re.findall(r"^## ([a-z]\w+)$|^\| `([\w/]+)\.py` \|", page, re.MULTILINE)
    modules = [module.removesuffix("/__init__").replace("/", ".") for _, module in listed]
    order = [package or module for (package, _), module in zip(listed, modules, strict=True)]
    sections = [[package, *modules] for package, modules in HOUSE.items()]
    house = [name for section in sections for name in section if name]
    assert order == house


def test_the_readme_lists_the_packages_in_the_order_of_imports():
    picture = README.split("## The house")[1].split("```")[1]
    names = re.findall(r"^  (\w+)(?:/|\.py)", picture, re.MULTILINE)
    assert names == [*HOUSE[""], *list(HOUSE)[1:]]


@pytest.mark.parametrize("page", TEXTS)
def test_the_files_a_page_names_exist(page):
    ours = [
        path
        for folder in ("gpt_jax", "configs", "scripts", "tests", "docs")
        for path in (ROOT / folder).rglob("*")
    ]
    paths = re.findall(r"\b((?:gpt_jax|configs|scripts|tests|docs)/[\w/]+\.\w+)", TEXTS[page])
    assert [path for path in paths if not (ROOT / path).exists()] == []
    names = re.findall(r"(?<![\w/])(\w+\.py)\b", TEXTS[page])
    assert set(names) - {"my_reward.py"} <= {path.name for path in ours}


@pytest.mark.parametrize("page", TEXTS)
def test_the_links_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[page]):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [anchor_of(heading) for heading in headings], link


def anchor_of(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_flag_the_documents_name_exists():
    known = {"config", "check", "help"}
    for name in SCRIPTS:
        script = importlib.import_module(name)
        known |= {name for name, *_ in getattr(script, "FLAGS", ())}
    for page, text in TEXTS.items():
        named = set(re.findall(r"`--(?:no)?(\w+)[=`]", text))
        assert named <= known, page


def test_every_setting_the_documents_name_exists():
    for page, text in TEXTS.items():
        if page == "CONTRIBUTING.md":
            continue  # Its setting is an example.
        for section, name in re.findall(rf"(?:`|config\.|=)({'|'.join(SECTIONS)})\.(\w+)", text):
            if name not in ("py", "safetensors"):
                assert hasattr(getattr(Config(), section), name), (page, section, name)


def test_no_document_holds_a_placeholder():
    for path in [*PAGES, *(ROOT / "configs").glob("*.py")]:
        assert not re.search(r"@[A-Z]+@|TODO|XXX", path.read_text(encoding="utf-8")), path


def test_the_places_the_tutorial_page_names_exist():
    page = TEXTS["docs/tutorial.md"]
    assert re.findall(r"^\| (\d+) ", page, re.MULTILINE) == [str(n) for n in range(1, 18)]
    modules = {path.stem: path for path in MODULES}
    names = [
        (module, name)
        for module, name in re.findall(r"`(\w+)\.([\w.]+)`", page)
        if not hasattr(getattr(Config(), module, None), name)  # A setting.
    ]
    assert len(names) > 15
    for module, name in names:
        parts = modules[module].relative_to(ROOT).with_suffix("").parts
        found = importlib.import_module(".".join(parts))
        for part in name.split("."):
            found = getattr(found, part)


def source_of(folder):
    """The source of every module in a folder, as one text."""
    return "".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py"))


def test_the_tests_the_documents_name_exist():
    names = re.findall(r"`(test_\w+)`", "".join(TEXTS.values()))
    assert len(names) > 60
    source = source_of("tests")
    assert [name for name in names if f"def {name}(" not in source] == []


def test_the_names_in_the_guide_for_contributors_exist():
    names = re.findall(r"`([A-Z_]{5,}|\w+_\w+)(?:\(.*?\))?`", TEXTS["CONTRIBUTING.md"])
    assert len(names) > 15
    source = source_of("gpt_jax") + source_of("scripts") + source_of("tests")
    assert [name for name in names if not re.search(rf"\b{name}\b", source)] == []
