"""The worker's command: `python worker.py`. As a service: deploy/kytecron-worker.service."""

from __future__ import annotations

import sys

from kytecron.engine.main import main

if __name__ == "__main__":
    sys.exit(main())
