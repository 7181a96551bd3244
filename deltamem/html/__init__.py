"""Templates and helpers shared by the HTML pages; each page is one self-contained file."""
