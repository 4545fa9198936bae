"""``python -m regiondh_cli`` is the command ``regiondh``."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
