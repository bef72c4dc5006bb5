"""Imports point one way, between packages and inside them, and importing has no effects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "gpt_jax"

# Each package may import those before it, and each module those before it in its package.
HOUSE = {
    "": ["errors", "files"],
    "config": ["setting", "sections", "config", "table", "cluster"],
    "text": [
        *(
            "grammar",
            "play",
            "derivation",
            "utf8_files",
            "corpus",
            "pieces",
            "extra_tokens",
            "bpe",
            "tokenizer",
        ),
        *("tokenizer_file", "corpus_index", "text_stream", "shards", "tokens", "preparation"),
        "windows",
    ],
    "model": [
        *("random_bits", "dropout", "initializers", "activations", "layers", "attention"),
        *("convolution", "blocks", "stacking", "gpt"),
    ],
    "devices": [
        *("jax_settings", "hardware", "device_count", "mesh", "batch_layout", "sharding"),
        *("processes", "compiler"),
    ],
    "runs": [
        *("lock", "checkpoint_list", "record", "resume", "checkpoint_files", "damage", "digest"),
        *("silence", "literal_names", "checkpoints", "recovery"),
    ],
    "sampling": ["sampler", "decode", "prompt"],
    "gpt2": ["names", "config_json", "tensors", "folder", "export"],
    "training": [
        *("muon", "optimizer", "state", "step", "communication", "origin", "memory"),
        *("reference", "objective", "distillation", "run", "plan"),
        *("evaluation", "log", "patience", "clock", "display", "curves", "pictures", "stopping"),
        *("tensorboard", "weights_and_biases", "samples", "monitor", "summary", "finish"),
        *("beginning",),
        *("divergence", "meeting", "loop", "benchmark"),
    ],
    "tuning": [
        *("template", "rows", "examples", "tasks.task", "tasks.play", "tasks.sums", "tasks"),
        *("source", "losses", "scoring", "instructions", "preferences", "reward", "drawing"),
        *("answers", "rewards", "judging", "maker"),
    ],
    "inspection": [],
    "completion": [],
    "api": [],
    "serving": [
        *(
            "errors",
            "requests",
            "choice",
            "row_sampler",
            "slots",
            "engine",
            "library",
            "drawing",
            "protocol",
        ),
        "page_data",
        *("sending", "handlers", "guard", "app", "server"),
    ],
}
ALONE = [name for name, modules in HOUSE.items() if not modules]  # Modules of no package.
PACKAGES = [name for name in HOUSE if name not in ("", *ALONE)]
ORDER = [
    ".".join(filter(None, [package, module]))
    for package, modules in HOUSE.items()
    for module in (modules or [""])
]
WITHOUT_JAX = ["errors", "files", "config", "text"]
WITHOUT_JAX += [f"runs.{name}" for name in ("lock", "checkpoint_list", "record", "resume")]
WITHOUT_JAX += [f"training.{name}" for name in ("log", "patience", "clock", "display")]
WITHOUT_JAX += [f"training.{name}" for name in ("curves", "pictures", "stopping", "tensorboard")]


def path_of(module: str) -> Path:
    """The source of a module or of a package, by its name inside gpt_jax."""
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(module: str) -> list[tuple[str, str]]:
    """What a module imports: (module, name), the name empty for a plain import."""
    found = []
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def ours(module: str) -> list[tuple[str, str]]:
    """The imports of our own modules, without the "gpt_jax." in front."""
    return [
        (source.removeprefix("gpt_jax").removeprefix("."), name)
        for source, name in imports_of(module)
        if source.split(".")[0] == "gpt_jax"
    ]


def sources(module: str) -> set[str]:
    """Our modules from which a module imports: a package counts as all that it re-exports."""
    found = set()
    for source, name in ours(module):
        full = ".".join(filter(None, [source, name]))
        found.add(full if path_of(full).exists() else source)
    return found


def public(package: str) -> set[str]:
    """The names in a package's __all__."""
    for node in ast.parse(path_of(package).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_the_house_names_every_module():
    floors = {PACKAGE / "__init__.py", *PACKAGE.glob("*/__init__.py")}
    assert {*PACKAGE.rglob("*.py")} - floors == {path_of(module) for module in ORDER}
    assert {path.parent for path in PACKAGE.glob("*/__init__.py")} == {
        PACKAGE / package for package in PACKAGES
    }


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    before = ORDER[: ORDER.index(module)]
    own = module.partition(".")[0]
    earlier = [*HOUSE][: [*HOUSE].index(own)] if own in HOUSE else []
    for source in sources(module):
        assert source in before or (source in earlier and source in PACKAGES), source


@pytest.mark.parametrize("module", ORDER)
def test_other_packages_import_only_public_names(module):
    for source, name in ours(module):
        package, _, inner = source.partition(".")
        if package in PACKAGES and package != module.partition(".")[0]:
            assert (inner or name) in public(package), f"{source}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_what_it_owns(package):
    document = ast.get_docstring(ast.parse(path_of(package).read_text(encoding="utf-8")))
    assert document is not None and "Owns" in document and "Read" in document


def reaches(module: str, library: str, seen: set[str]) -> bool:
    """Whether a module imports a library, itself or through our other modules."""
    if any(source.split(".")[0] == library for source, _ in imports_of(module)):
        return True
    new = {source for source in sources(module) if source} - seen
    parents = {source.partition(".")[0] for source in new} - seen
    seen |= new | parents
    return any(reaches(source, library, seen) for source in new | parents)


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_some_modules_need_no_jax(module):
    assert not reaches(module, "jax", {module})
    assert not reaches(module, "flax", {module})


@pytest.mark.parametrize(
    ("library", "owner"),
    [
        ("orbax", "runs.checkpoints"),
        ("matplotlib", "training.pictures"),
        ("tensorboardX", "training.tensorboard"),
        ("wandb", "training.weights_and_biases"),
        ("safetensors", "gpt2.tensors"),
        ("tokenizers", "text.bpe"),
        ("urllib", "text.corpus"),
        ("uvicorn", "serving.server"),
        ("absl", None),
    ],
)
def test_one_module_owns_each_of_these_libraries(library, owner):
    users = {
        module
        for module in ORDER
        if any(source.split(".")[0] == library for source, _ in imports_of(module))
    }
    assert users == ({owner} if owner else set())


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, gpt_jax; print([m for m in sys.modules if m in ('jax', 'numpy', 'absl')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_importing_every_module_starts_no_device_and_changes_no_variable_or_setting():
    code = (
        "import os, jax; before = dict(os.environ), dict(jax.config.values)\n"
        f"for name in {ORDER}: __import__('gpt_jax.' + name)\n"
        "from jax._src import xla_bridge\n"
        "after = dict(os.environ), dict(jax.config.values)\n"
        "print(xla_bridge.backends_are_initialized(), after == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "True"], done.stderr
