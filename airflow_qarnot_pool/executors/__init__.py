"""Run the tasks of Airflow itself on Qarnot nodes."""
