"""Decide which remote object belongs to which Airflow task instance."""
