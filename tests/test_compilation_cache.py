"""JAX keeps what it compiled in the user's own folder, and nowhere else."""

import jax
import pytest

from gpt_jax import compilation_cache
from gpt_jax.corpus import cache_folder


@pytest.fixture
def settings(monkeypatch):
    """What is set, beginning with no cache, as in a process of its own."""
    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", None)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    return found


def test_everything_that_is_compiled_is_kept_in_the_users_folder(settings):
    compilation_cache.use_compilation_cache()
    folder = cache_folder() / "compiled"
    assert settings == {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_is_not_used(settings):
    folder = cache_folder() / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    compilation_cache.use_compilation_cache()
    assert settings == {}


def test_what_the_user_has_set_wins(settings, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    compilation_cache.use_compilation_cache()
    assert list(settings) == ["jax_compilation_cache_dir"]
    settings.clear()
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    compilation_cache.use_compilation_cache()
    assert settings == {}
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE")
    monkeypatch.setattr(type(jax.config), "jax_compilation_cache_dir", "/elsewhere")
    compilation_cache.use_compilation_cache()
    assert settings == {}


def test_where_no_folder_can_be_made_there_is_no_cache(settings):
    cache_folder().write_text("a file")
    compilation_cache.use_compilation_cache()
    assert settings == {}
