"""What the pages of this library share: each is one file that needs nothing else, no network and no other file."""
