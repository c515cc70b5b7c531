"""Is it any good? Metrics, the classifier whose features they compare, and both on a data set."""
