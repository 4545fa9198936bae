"""The work of the subcommands of ``regiondh``: a module each, with ``run(args)``.

``args`` come from the parser in ``regiondh_cli.subcommands``. ``run`` raises errors, which
:func:`..engine.command.run_command` prints, and may return an exit status.
"""
