"""Links from the Airflow UI to the Qarnot console."""
