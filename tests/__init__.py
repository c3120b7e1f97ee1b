"""The tests: `unit` by room, `program` for whole runs, `support` for what they share."""
