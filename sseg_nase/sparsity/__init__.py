"""NASE: importance, complementary masks, physical pruning."""
