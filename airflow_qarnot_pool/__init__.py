"""Apache Airflow provider for warm pools of Qarnot compute nodes."""

__version__ = "0.1.0"
