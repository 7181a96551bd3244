"""`deltamem study`: a declared grid of trainings and measurements, and what is drawn from it."""
