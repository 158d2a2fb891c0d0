"""What pools and Qarnot tasks cost: figures, limits, idle time and reports."""
