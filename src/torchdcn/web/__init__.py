"""The web page: it takes a picture, and shows what a network detects in it and where it looked."""
