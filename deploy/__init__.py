"""Running it: the embedded runtime behind one command line, and everything needed to run it elsewhere."""
