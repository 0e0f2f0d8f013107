"""Models on a hub, which are downloaded only where their name asks for it: ``hub:owner/name``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ldm.errors import CheckpointError, bad_value
from ldm.extras import optional_module
from ldm.storage import CONFIG_FILE, MODEL_FILE
from ldm.util import user_path

PREFIX = "hub:"
NAME = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
FILES = [MODEL_FILE, CONFIG_FILE, "README.md"]  # no code, nothing that is unpickled


def local_folder(path: str | Path) -> Path:
    """Return where a model lies; one called ``hub:owner/name`` is downloaded first.

    Args:
        path: a path, or ``hub:owner/name``, of the Hugging Face Hub,
            with ``@revision`` for a branch, tag or commit.

    Raises:
        ConfigError: CONFIG-VALUE for another name after ``hub:``, CONFIG-EXTRA without
            ``huggingface_hub``. CheckpointError: CKPT-MISSING where there is no such model, or no
            connection.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return user_path(path)
    named = NAME.fullmatch(text)
    if named is None:
        raise bad_value(f"'{text}' names no model: give hub:owner/name or hub:owner/name@tag")
    download: Any = optional_module("huggingface_hub", text).snapshot_download
    try:
        folder = download(named["name"], revision=named["revision"], allow_patterns=FILES)
    except (OSError, ValueError) as error:  # what the hub answers, or that it does not
        raise CheckpointError(
            "CKPT-MISSING",
            f"{text} could not be had ({' '.join(str(error).split())[:120]}): correct the name, or "
            "download the folder and give its path",
        ) from error
    return Path(folder)
