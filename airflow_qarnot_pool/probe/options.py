"""The options of the probe, for both forms of the command. Every start of Airflow's CLI imports them."""

from __future__ import annotations

from typing import Any

OPTIONS: dict[tuple[str, ...], dict[str, Any]] = {
    ("--max-cost",): {"type": float, "default": 1.0, "metavar": "EUROS", "help": "Maximum cost of the run"},
    ("--max-minutes",): {
        "type": float,
        "default": 45.0,
        "metavar": "MINUTES",
        "help": "Time after which nothing more is started",
    },
    # Above the public prices of one node.
    ("--euros-per-node-hour",): {
        "type": float,
        "default": 6.0,
        "metavar": "EUROS",
        "help": "Price for the estimate while Qarnot has not reported a cost; not below the real one",
    },
    ("--profile",): {"default": "docker-batch", "help": "Profile of the pools"},
    ("--image",): {"default": "library/alpine", "help": "Small image with sh, for commands on a node"},
    ("--only",): {"default": "", "metavar": "IDS", "help": "Ids of the rows to ask, separated by commas"},
    ("--answers",): {"default": "answers.json", "metavar": "PATH", "help": "File for the answers"},
    ("--clean-up",): {
        "action": "store_true",
        "help": "Ask nothing, and delete everything that probe runs have left, also that of one that still runs",
    },
}
