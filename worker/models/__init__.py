"""Model files: which there are, where they live, fetching and checking them."""
