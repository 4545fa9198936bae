"""What the subcommands of ``regiondh`` do: a module each, with ``run(args)``.

``args`` are of the parser in ``regiondh_cli.subcommands``. ``run`` raises what
:func:`..engine.command.run_command` tells, and may return an exit status of its own.
"""
