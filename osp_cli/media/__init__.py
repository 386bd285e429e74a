"""Pictures and videos in and out of the program: files, pixels, sinks, sheets."""
