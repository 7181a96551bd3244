"""Generated tasks after RULER (arXiv 2404.06654): retrieve what is hidden in noise."""
