"""Tasks after RULER (arXiv 2404.06654), generated: what is hidden in noise is asked for."""
