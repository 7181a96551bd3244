"""`deltamem study`: runs a declared grid of trainings and measurements, and plots the results."""
