"""The web page: an image in, what the network sees in it, and where it looked."""
