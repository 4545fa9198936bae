#!/usr/bin/env python
"""The same as `regiondh evaluate-codes`."""

import sys

from regiondh_cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("evaluate-codes", __file__))
