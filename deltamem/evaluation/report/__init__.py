"""`deltamem report`: renders the results of an evaluation as an HTML page."""
