"""Imports point one way, and importing has no effects."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# Each module may import those before it.
ORDER = [
    "setting",
    "sections",
    "config",
    "config_table",
    "files",
    "cluster",
    "lock",
    "interruption",
    "bpe",
    "tokenizer",
    "text_stream",
    "play",
    "corpus",
    "shards",
    "preparation",
    "data",
    "layers",
    "attention",
    "stacking",
    "model",
    "optimizer",
    "hardware",
    "sharding",
    "train_step",
    "communication",
    "sampling",
    "digest",
    "run_folder",
    "resume",
    "gpt2",
    "pretrained",
    "damage",
    "distributed",
    "checkpoint",
    "run",
    "evaluation",
    "metrics",
    "tensorboard",
    "report",
    "finish",
    "training",
    "api",
    "export",
    "plan",
    "benchmark",
    "compilation",
]
WITHOUT_JAX = [
    *(
        "setting",
        "sections",
        "config",
        "config_table",
        "files",
        "cluster",
        "lock",
        "bpe",
        "tokenizer",
        "text_stream",
        "play",
        "corpus",
        "shards",
        "preparation",
        "data",
    ),
    *("run_folder", "resume", "gpt2", "damage", "metrics", "tensorboard", "report"),
]


def imports_of(module: str) -> set[str]:
    """Every module that the source of a module names in an import, by its full name."""
    names = set()
    source = (ROOT / "gpt_jax" / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_the_order_names_every_module():
    files = {path.stem for path in (ROOT / "gpt_jax").glob("*.py")} - {"__init__"}
    assert files == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_never_point_down(module):
    allowed = {f"gpt_jax.{name}" for name in ORDER[: ORDER.index(module)]}
    ours = {
        ".".join(name.split(".")[:2]) for name in imports_of(module) if name.startswith("gpt_jax.")
    }
    assert ours <= allowed


def reaches(module: str, library: str) -> bool:
    """Whether a module imports a library, itself or through our other modules."""
    names = imports_of(module)
    if any(name.split(".")[0] == library for name in names):
        return True
    ours = {name.split(".")[1] for name in names if name.startswith("gpt_jax.")} & set(ORDER)
    return any(reaches(name, library) for name in ours)


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_some_modules_need_no_jax(module):
    assert not reaches(module, "jax")
    assert not reaches(module, "flax")


@pytest.mark.parametrize(
    ("library", "owner"),
    [
        ("orbax", "checkpoint"),
        ("matplotlib", "report"),
        ("tensorboardX", "tensorboard"),
        ("safetensors", "gpt2"),
        ("tokenizers", "bpe"),
        ("urllib", "corpus"),
        ("absl", None),
    ],
)
def test_one_module_owns_each_of_these_libraries(library, owner):
    users = {
        module
        for module in ORDER
        if any(name.split(".")[0] == library for name in imports_of(module))
    }
    assert users == ({owner} if owner else set())


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, gpt_jax; print([m for m in sys.modules if m in ('jax', 'numpy', 'absl')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_importing_every_module_starts_no_device_and_sets_no_variable():
    code = (
        "import os; before = dict(os.environ)\n"
        f"for name in {ORDER}: __import__('gpt_jax.' + name)\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized(), dict(os.environ) == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "True"], done.stderr
