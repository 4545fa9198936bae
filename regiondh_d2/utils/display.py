"""How to show file names, which may hold any character.

The functions are in :mod:`regiondh_cli`, whose parsers show names before anything else is imported.
"""

from regiondh_cli.display import display_name, display_width, print_line, tolerate_any_text

__all__ = ["display_name", "display_width", "print_line", "tolerate_any_text"]
