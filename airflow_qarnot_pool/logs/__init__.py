"""Write the output of Qarnot tasks to the Airflow task log."""
