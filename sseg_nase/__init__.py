"""sseg-nase: grow, sparsify and judge small neural networks for few-shot learning."""

__version__ = "0.1.0"
