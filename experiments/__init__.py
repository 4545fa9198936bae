"""The study of the methods: its table of rows, the runner, the plots and the measured results.

It uses the library :mod:`regiondh_d2`, which never imports it. It isn't installed with the
library: run its commands in the checkout, ``python -m experiments.run`` and
``python -m experiments.plot``.
"""
