"""Data: image stores, the curriculum, views, episodes."""
