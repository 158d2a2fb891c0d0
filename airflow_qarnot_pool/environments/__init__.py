"""Python environments that Qarnot brings to nodes, so that no call installs anything or needs a network."""

from airflow_qarnot_pool.environments.specification import QarnotEnvironment

__all__ = ["QarnotEnvironment"]
