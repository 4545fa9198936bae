"""``python -m regiondh_d2`` is the command ``regiondh``."""

import sys

from regiondh_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
