"""What tests stand on: real servers, ways to break them, and ways to wait."""
