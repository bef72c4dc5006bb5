"""Notes."""

import errno
import io
import os
import sys

from gpt_jax.errors import note


class Full(io.StringIO):
    """A stream to a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_note_that_cannot_be_written_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Full())
    note("the disk is full")
