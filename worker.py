"""The worker's command: `python worker.py`. As a service: deploy/kytecron-worker.service."""

from __future__ import annotations

import sys
from pathlib import Path

# With `python -P`, as the service starts it, Python itself does not look beside this file.
sys.path.append(str(Path(__file__).resolve().parent))

from kytecron.engine.main import main

if __name__ == "__main__":
    sys.exit(main())
