"""The page in the browser: it reads what is on disk, starts commands, and holds nothing itself."""
