"""What measures candidates."""
