"""`python -m airflow_qarnot_pool.probe`: ask a Qarnot service the open questions of docs/assumptions.md."""

from __future__ import annotations

import sys

from airflow_qarnot_pool.probe.command import main

if __name__ == "__main__":
    sys.exit(main())
