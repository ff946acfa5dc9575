"""One short file a verb: build the parts, call, print."""
