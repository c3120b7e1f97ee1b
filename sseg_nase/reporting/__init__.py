"""Reporting: the results of several runs side by side, with what can be said about them."""
