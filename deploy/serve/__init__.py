"""The HTTP service: plain Python apart from one thin file that puts it on Ray Serve."""
