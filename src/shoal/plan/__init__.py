"""What a run will take, foretold before it is started."""
