#!/usr/bin/env python
"""The same as `regiondh evaluate-objects`."""

import sys

from regiondh_cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script("evaluate-objects", __file__))
