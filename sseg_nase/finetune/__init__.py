"""Fine-tuning on labelled base classes: episodic methods, MAML, and a plain classifier."""
