"""XCom keys under which a running try stores what it has on Qarnot, before any waiting."""

POOL_KEY = "qarnot_pool"
TASK_KEY = "qarnot_task"
TASKS_KEY = "qarnot_tasks"
#: Who writes the output of the Qarnot task to the log.
OUTPUT_KEY = "qarnot_output"


def position_key(follower: str) -> str:
    """Key of how far one of them is."""
    return f"{OUTPUT_KEY}_{follower}"
