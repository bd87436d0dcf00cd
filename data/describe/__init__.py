"""Check and describe a whole data set."""
