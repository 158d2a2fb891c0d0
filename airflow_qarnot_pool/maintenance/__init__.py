"""Clean up pools and Qarnot tasks that no DAG run needs any more."""
