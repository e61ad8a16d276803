"""Fuzz the layers: `python tests/fuzz --cases 1000 --backend jax`; see docs/fuzzing.md."""

import sys
from pathlib import Path

if __name__ == "__main__":
    tests = Path(__file__).resolve().parents[1]
    # In place of this folder, whose files are modules of the package `fuzz`. This checkout's
    # package comes before one that is installed.
    sys.path[:1] = [str(tests), str(tests.parent)]
    from fuzz.cli import main

    sys.exit(main())
