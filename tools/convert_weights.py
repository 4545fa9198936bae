#!/usr/bin/env python
"""The same as `regiondh convert-weights`."""

import sys

from regiondh_cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("convert-weights", __file__))
