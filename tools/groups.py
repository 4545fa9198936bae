#!/usr/bin/env python
"""The same as `regiondh groups`."""

import sys

from regiondh_cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("groups", __file__))
