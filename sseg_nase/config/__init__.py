"""The typed schema, composition and validation, and the fingerprint of a config."""
