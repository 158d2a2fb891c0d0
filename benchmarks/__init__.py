"""Programs that measure the provider against named peers; see ``docs/contributing/evidence/benchmarks.md``.

``python -m benchmarks.NAME [--waiters N] [--json PATH]``; ``make bench`` runs all of them. Only ratios mean
something: times depend on the machine and on what else it does.
"""
