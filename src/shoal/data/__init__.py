"""Text in, tokens on disk, and which rank reads what. Knows ranks as two integers, and no process group."""
