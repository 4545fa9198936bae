#!/usr/bin/env python
"""The same as `regiondh analyze-model`."""

import sys

from regiondh_cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("analyze-model", __file__))
