"""Timetables: when a DAG runs next, and a schedule that fires ahead of another one."""
