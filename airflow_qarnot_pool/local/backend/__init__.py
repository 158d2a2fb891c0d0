"""State and engines of the local Qarnot: pools, tasks, nodes, clock and billing."""
