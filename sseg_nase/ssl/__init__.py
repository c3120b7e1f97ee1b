"""Self-supervision: objectives, methods, and the EMA teacher."""
