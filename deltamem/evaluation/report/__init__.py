"""`deltamem report`: what an evaluation found, as a page to look at."""
