"""The tiny preset's model with more positions, for rows that byte tokens make long."""

import json
import shutil
from pathlib import Path

from support.places import REPOSITORY


def wide_tiny(folder: Path, positions: int) -> str:
    """Write the model to `folder`; the setting that names it."""
    shutil.copytree(REPOSITORY / "presets" / "tiny", folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": positions}))
    return f"model.pretrained_model_name_or_path={folder}"
